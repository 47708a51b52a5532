"""The larger checks of `doctor`.

`database` is the server, its tables and each question of a night; `rights` is what the account may do there; `serve`
is the same for an account of serve's own; `lms` is whether the LMS takes each call; `findings` is what they find.
The broker's part is in `doctor` itself.
"""
