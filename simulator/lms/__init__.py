"""A simulated LMS."""
