"""What operators look at: pages and metrics, read from the ledger."""
