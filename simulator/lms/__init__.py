"""The simulated LMS: its state, its HTTP handlers, its faults and its journal."""
