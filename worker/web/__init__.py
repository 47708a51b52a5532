"""What operators look at in a browser and in Prometheus. It only reads.

`server` answers; `html` makes the pages from `templates/`, `timeline` the bars of a night; `history` reads past nights
from the ledger, `metrics` gives them to Prometheus.
"""
