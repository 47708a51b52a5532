"""license-manager data: its tables, invented rows, the demo's enterprises."""
