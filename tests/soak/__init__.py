"""`make soak`: many nights in a row on real processes; whatever grows shows."""
