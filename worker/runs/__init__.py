"""Executes runs, from a trigger to the last recorded call. Does not import Celery: callers pass a publish function.

`request` checks a trigger's arguments; `start` opens runs and publishes them; `reconcile` resumes abandoned ones;
`attempt` does one step and records how it ended; `outages` makes all runs wait for an outage and probes it once;
`steps` has the two steps; `batches` reads their licenses; `flight` keeps calls in flight; `downgrading` and
`unlinking` send one batch; `clocks` compares the clocks first; `marking` marks plans as processed.
"""
