"""Doing it: a run is opened, published, carried out step by step, resumed."""
