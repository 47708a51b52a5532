"""What we write in license-manager's name, as license-manager does it, and what its marks attest.

`plan_history` marks plans as processed, `marks` says what such a mark attests, `events` inserts license events,
`segment` sends lifecycle events. Only `segment` speaks to Segment.
"""
