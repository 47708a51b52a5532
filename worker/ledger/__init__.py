"""The ledger: who may do what, and what was done. It, and not Celery, decides; its tables are our own.

`order` is the order of the steps; `claims` says who has a run; `runs` opens and stops runs; `stalled` finds abandoned
ones and those too old; `waits` is what all runs wait for, `nights` has the scheduled nights; `held` and
`confirmations` what became of licenses; `identity` says which LMS the database is of, and which ledger it has;
`lms_calls` counts the calls to it, `limits` holds them to the settings; `past` sums up and prunes; `migrations`
makes the tables.
"""
