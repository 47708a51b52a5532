"""The LMS client. Only this package speaks HTTP; it knows no database and no Celery.

`client` has the calls and how often each is tried; `transport`, its base, has the token and the throttle; `answer`
reads what comes back, within a time and a size; `learners` the question who is linked; `outcomes` what each answer
means, and `connecting` what it means that none came; `patience` says how long a call is retried in place.
"""
