"""`python -m chaos.wrong_clock …`: Celery under libfaketime, whose clock_nanosleep refuses how Python sleeps (0.9.10).

select is left alone by it, and sleeps as well.
"""

import select
import sys
import time
from typing import SupportsIndex


def _sleep(seconds: float | SupportsIndex) -> None:
    select.select([], [], [], float(seconds))


time.sleep = _sleep  # before anybody imports it by name

if __name__ == "__main__":
    from celery.__main__ import main

    sys.exit(main())
