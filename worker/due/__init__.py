"""What is due: pure selects over license-manager's tables and the ledger. No Celery, no HTTP and no clock here.

`scope` is what they judge by; `plans`, `downgrades`, `unlinks` and `enterprises` are the questions; `learners` says who
is the same learner; `conditions` has the parts that the questions share; `statements` executes them; `forecast` counts
what a night would do, and `fates` whom it would unlink; `explain` tells why it does what about one learner, and
`outlook` when. The rules are in docs/explanation/due.md; the tests compare them, row by row, with a reading
of the rules in plain Python.
"""
