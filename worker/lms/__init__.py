"""The LMS: its two calls, their outcomes, the limits on them."""
