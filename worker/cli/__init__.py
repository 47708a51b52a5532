"""The command license-expiry."""
