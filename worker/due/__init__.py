"""Finds the work that is due: selects over license-manager's tables and the ledger. No Celery, HTTP or clock here.

`scope` holds the inputs of every query. `plans`, `downgrades`, `unlinks` and `enterprises` build the queries;
`learners` matches licenses of the same learner; `conditions` has the parts that the queries share; `statements`
executes them. `forecast` counts what a night would do, and `fates` counts the learners it would unlink. `explain`
explains what happens to one learner, and `outlook` on which night. The rules stand in docs/explanation/due.md, "What is
due". The tests compare every query, row by row, with the same rules written in plain Python.
"""
