"""A monotonic clock for waits, and the differences allowed between the clocks of machines."""

import time
from datetime import timedelta
from functools import partial

# Seconds. Where there is such a clock, it also runs while the machine is suspended.
steady = partial(time.clock_gettime, getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))

# How far beat's clock may be ahead of the database's before its night counts as the previous one. Less than a minute,
# the shortest interval of a schedule.
BEAT_AHEAD = timedelta(seconds=30)

# The most that two clocks may differ before we send nothing. A later time stamp comes from a wrong clock.
LEEWAY = timedelta(minutes=10)
