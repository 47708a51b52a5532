"""What license-manager's mark on a plan attests, and what we write in its name, as it does it.

`marks` reads the mark; `plan_history` marks plans as processed, `events` inserts license events, `segment` sends
lifecycle events. Only `segment` speaks to Segment.
"""
