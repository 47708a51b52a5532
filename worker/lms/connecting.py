"""Why a call did not reach the LMS, in words that name the address, the cause and what to change."""

import ssl
from collections.abc import Iterator
from urllib.parse import urlsplit

import requests
from requests.utils import get_environ_proxies, select_proxy

from worker.errors import Unavailable
from worker.lms.outcomes import LOOK_AT_THE_LMS

BUNDLE = "if its CA is one of your own, name a PEM file with it in REQUESTS_CA_BUNDLE"


def not_reached(error: OSError, url: str, setting: str) -> Unavailable:
    """The error for a request to this address that raised `error`, of requests or of the system.

    `setting` is the one that the address is from. Nothing of the error's own text is shown, except what OpenSSL and
    the system say of a certificate and of a connection.
    """
    where = _where(url)
    if isinstance(error, requests.Timeout):
        return Unavailable("timeout", f"{where} did not answer in time", LOOK_AT_THE_LMS)
    if not isinstance(error, requests.RequestException):
        return Unavailable("connection_error", f"{where} was not called: the CAs cannot be read", BUNDLE)
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            what = f"the certificate of {where} does not verify ({cause.verify_message})"
            return Unavailable("connection_error", what, f"{BUNDLE}; else correct {setting} or the certificate")
    told = next(filter(None, map(_words, reversed(causes))), type(error).__name__)
    what = f"the connection to {where} failed ({told})"
    return Unavailable("connection_error", what, f"check {setting}" + _of_the_proxy(url))


def _where(url: str) -> str:
    proxy = _proxy(url)
    return f"the LMS at {urlsplit(url).netloc}" + (f", through the proxy {proxy}," if proxy else "")


def _proxy(url: str) -> str | None:
    """The proxy that requests takes from the environment for this address."""
    found: str | None = select_proxy(url, get_environ_proxies(url))
    return found


def _of_the_proxy(url: str) -> str:
    return ", and HTTP_PROXY, HTTPS_PROXY and NO_PROXY in this process's environment" if _proxy(url) else ""


def _causes(error: BaseException) -> Iterator[BaseException]:
    """This error and its causes: requests and urllib3 wrap each other's errors in several ways."""
    seen: set[int] = set()
    left: list[object] = [error]
    while left:
        cause = left.pop(0)
        if isinstance(cause, BaseException) and id(cause) not in seen:
            seen.add(id(cause))
            yield cause
            left += [*cause.args, getattr(cause, "reason", None), cause.__cause__, cause.__context__]


def _words(cause: BaseException) -> str | None:
    """The system's own text of an error, if it has one."""
    if isinstance(cause, ssl.SSLError):
        return cause.reason
    if isinstance(cause, OSError) and type(cause.errno) is int:
        return cause.strerror
    return None
