"""A client of the simulated LMS that has nothing of the worker's."""

from typing import Any
from uuid import UUID, uuid4

import requests

from simulator.lms.server import Simulator
from simulator.lms.state import Enrollment

GOOD = "good@x.example"


class Client:
    """Calls the simulator as any service would, with nothing of the worker's client."""

    def __init__(self, lms: Simulator) -> None:
        self.lms = lms
        self.session = requests.Session()
        self.sign_in()

    def token(self, **form: str) -> requests.Response:
        right = {
            "grant_type": "client_credentials",
            "client_id": self.lms.client_id,
            "client_secret": self.lms.client_secret,
            "token_type": "jwt",
        }
        return self.session.post(f"{self.lms.url}/oauth2/access_token", data={**right, **form}, timeout=30)

    def sign_in(self) -> None:
        self.session.headers["Authorization"] = f"JWT {self.token().json()['access_token']}"

    def post(self, path: str, body: Any, timeout: float = 30, **options: Any) -> requests.Response:
        return self.session.post(self.lms.url + path, json=body, timeout=timeout, **options)

    def downgrade(self, *licenses: object, after: str | None = None, **options: Any) -> requests.Response:
        path = "/enterprise/api/v1/licensed-enterprise-course-enrollment/bulk_licensed_enrollments_expiration/"
        body = {
            "expired_license_uuids": [str(license) for license in licenses],
            "ignore_enrollments_modified_after": after,
        }
        return self.post(path, body, **options)

    def learners(self, enterprise: object, *user_ids: object, **options: object) -> requests.Response:
        asked = {"enterprise_customer_uuid": str(enterprise), "user_ids": ",".join(map(str, user_ids)), **options}
        return self.session.get(f"{self.lms.url}/enterprise/api/v1/enterprise-learner/", params=asked, timeout=30)  # type: ignore[arg-type]

    def unlink(self, enterprise: object, emails: Any, **fields: Any) -> requests.Response:
        path = f"/enterprise/api/v1/enterprise-customer/{enterprise}/unlink_users/"
        return self.post(path, {"user_emails": emails, "is_relinkable": True, **fields})


def enroll(lms: Simulator, enterprise: UUID, *enrollments: Enrollment) -> UUID:
    license = uuid4()
    lms.state.add_license(license, enterprise, list(enrollments) or [Enrollment()])
    return license
