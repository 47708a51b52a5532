"""The read-only web pages and the metrics for operators.

`server` is the HTTP server; `html` renders the pages from `templates/`; `timeline` computes the bars of a night;
`lines` describes a run as a line of a night; `words` formats times, reasons and commands. Modules that read the ledger:
`matters` (present problems), `history` (nights), `enterprises` (one enterprise, and the grid), `runs` (one run, its
plans and licenses) and `metrics` (for Prometheus).
"""
