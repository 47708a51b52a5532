"""The worker, package by package: docs/explanation/code.md has one row for each."""
