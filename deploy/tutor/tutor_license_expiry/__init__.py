"""A Tutor plugin that runs license-expiry beside license-manager."""
