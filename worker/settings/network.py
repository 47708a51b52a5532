"""Finds settings that point to another machine without encryption, a checked certificate or a password."""

from collections.abc import Iterator, Mapping

from worker.settings.urls import Url, read

_READ_THERE = {
    "CELERY_BROKER_URL": "its password, and start tasks with it",
    "CELERY_RESULT_BACKEND": "its password, and the results of tasks",
    "DATABASE_URL": "its password and the learners' e-mail addresses",
    "LMS_URL": "the token of the service user and the learners' e-mail addresses",
    "SOCIAL_AUTH_EDX_OAUTH2_URL_ROOT": "the secret of the service user",
}
_REMEDY = "Encrypt it as docs/how-to/secure.md says under TLS, or keep it within a network that nobody else is on"


def exposed(settings: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """A message and remedy for each of these settings, by name, that leads beyond this machine unprotected."""
    for name, content in _READ_THERE.items():
        value = settings.get(name)
        if not value:
            continue
        url = read(str(value))
        if url.danger:
            yield (
                f"{name} points to another machine and {url.danger}: others on the network can read {content}",
                _REMEDY,
            )
        if name == "CELERY_BROKER_URL" and _is_open(url):
            what = f"{name} has no password and points to another machine: anyone who reaches it can start tasks"
            yield what, "Give the Redis a user and a password, as docs/how-to/secure.md says under Redis"


def _is_open(url: Url) -> bool:
    return url.scheme.startswith("redis") and not url.has_password and not url.is_local
