"""What we write in license-manager's name, as license-manager does it.

`plan_history` marks plans as processed, `events` inserts license events, `segment` sends lifecycle events. Only
`segment` speaks to Segment.
"""
