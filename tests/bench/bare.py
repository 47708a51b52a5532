"""A bare loop that posts bodies like a night's with requests: `python -m bench.bare CALLS`; prints processor s."""

import json
import os
import sys
import time
from uuid import uuid4

import requests

from worker.lms.client import DOWNGRADE_PATH
from worker.lms.transport import TOKEN_PATH

SECRET = {"client_id": "license-expiry", "client_secret": "not-a-secret", "grant_type": "client_credentials"}


def token(session: requests.Session, url: str) -> str:
    """Ask the LMS at this root for a token, and return it."""
    return str(session.post(url + TOKEN_PATH, data=SECRET | {"token_type": "jwt"}, timeout=10).json()["access_token"])


def post(url: str, calls: int) -> float:
    """Post so many downgrades of 100 licenses that nobody knows; give the seconds of processor time that it took."""
    session = requests.Session()
    headers = {"Content-Type": "application/json", "Authorization": f"JWT {token(session, url)}"}
    uuids = [[str(uuid4()) for _ in range(100)] for _ in range(calls)]
    began = time.process_time()
    for each in uuids:
        body = json.dumps({"expired_license_uuids": each, "ignore_enrollments_modified_after": None})
        session.post(url + DOWNGRADE_PATH, data=body, headers=headers, timeout=10).raise_for_status()
    return time.process_time() - began


if __name__ == "__main__":
    print(post(os.environ["LMS_URL"], int(sys.argv[1])))  # noqa: T201
