"""The LMS, for whoever calls it. Only this package speaks HTTP; it knows no database and no Celery.

`client` has the two calls and how often each is tried; `learners` asks who is linked, and by which address;
`transport`, the client's base, has the token, the throttle and the time-outs; `outcomes` what each status means;
`patience` how long we bear with the LMS; `host_slots` how many calls a host may have in flight.
"""
