"""The LMS client. Only this package speaks HTTP; it knows no database and no Celery.

`client` has the calls and how often each is tried; `transport`, its base, has the token and the throttle; `answer`
reads what comes back, within a time and a size; `learners` queries who is linked; `outcomes` turns answers into
errors, and `connecting` failed connections; `patience` says how long a call is retried in place.
"""
