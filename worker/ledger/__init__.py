"""The ledger: our own tables, which decide who may work on a run and record what was done. Celery decides neither.

`order` has the order of the steps; `claims` gives one worker a run; `runs` opens and stops runs; `stalled` finds runs
that are abandoned or too old. `waits` holds the outage and the pause that all runs wait for; `nights` has the
scheduled nights. `held` has the licenses that the LMS refuses, `confirmations` the downgrades that it confirmed.
`identity` has the ledger's id and the LMS that the database belongs to. `lms_calls` counts LMS calls and `limits`
limits them to the settings. `past` sums up and prunes old runs; `migrations` creates the tables.
"""
