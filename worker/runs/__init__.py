"""Doing it, from a trigger to the last recorded call. Knows no Celery: a publication is a function that is handed in.

`request` checks what is asked for; `start` opens runs and publishes them; `reconcile` resumes what was abandoned;
`attempt` does one step and leaves the run in a phase that tells the truth; `outages` are met once for all runs;
`steps` are the two steps; `batches` reads their licenses; `flight` keeps calls in flight; `downgrading` and
`unlinking` send one batch; `clocks` compares clocks before; `marking` marks plans that are done.
"""
