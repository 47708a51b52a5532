"""The command license-expiry.

`main` has the commands, `options` what they share; `tables` prints; `watch` waits for runs; `in_process` is `run
--here`; `stop` is also `pause` and `resume`; `explain` says, in the words of `verdicts`, why a learner's licenses
are done or not; `doctor` looks for faults, with the `checks`; `broker` is its Celery side, loaded only when needed.
"""
