"""What we write in license-manager's name."""
