"""A clock that nobody sets, for what other machines judge by theirs."""

import time
from datetime import timedelta
from functools import partial

# Seconds. Where there is such a clock, it also runs while the machine is suspended.
steady = partial(time.clock_gettime, getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))

# How far beat's clock may be ahead of the database's without its night being taken for that of the day before; less
# than the minute that the nights of the tightest schedule are apart.
BEAT_AHEAD = timedelta(seconds=30)

# How far apart two clocks may be before nothing is sent by them. What is of later than that comes from a wrong clock.
LEEWAY = timedelta(minutes=10)
