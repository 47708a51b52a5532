"""Who may do what, and what was done: our own tables in license-manager's database."""
