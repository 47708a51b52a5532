"""Faults drawn at random against real processes; the simulated LMS judges what came of them."""
