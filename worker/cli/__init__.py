"""The command license-expiry.

`main` has the commands, `options` what they share; `tables` prints; `watch` waits for runs; `in_process` is
`run --here`; `doctor` and `rights` look for faults; `broker` is its Celery side, loaded only when needed.
"""
