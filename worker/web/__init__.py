"""What operators look at in a browser and in Prometheus. It only reads.

`server` answers; `html` makes the pages from `templates/`, `timeline` the bars of a night, `lines` a run as a line of
it, `words` what is said. The ledger is read by `matters` (what is wrong now), `history` (nights), `enterprises` (one
over time, and the grid) and `runs` (one run, its plans and licenses); `metrics` gives it to Prometheus.
"""
