"""What is due: selects over license-manager's tables and the ledger."""
