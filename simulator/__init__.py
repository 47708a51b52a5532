"""A simulated LMS and invented license-manager data, for the demo, the tests and the benchmarks."""
