"""The worker, package by package: docs/architecture.md has one row for each."""
