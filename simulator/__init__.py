"""An LMS and license-manager data to try the worker on: used by the demo, the tests and the benchmarks."""
