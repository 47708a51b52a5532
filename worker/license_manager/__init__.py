"""Reads and writes license-manager's records in the way that license-manager does.

`marks` reads the mark on a plan; `plan_history` marks plans as processed; `events` inserts license events; `segment`
sends lifecycle events, and is the only module that calls Segment.
"""
