"""What is warned of: each setting that points to another machine unencrypted, unverified, or without a password."""

import pytest

from worker.settings.network import exposed

SAFE = {
    "CELERY_BROKER_URL": "rediss://:p@redis.example.com/5?ssl_cert_reqs=required",
    "CELERY_RESULT_BACKEND": "",
    "DATABASE_URL": "postgresql+psycopg://u:p@db.example.com/d?sslmode=verify-full",
    "LMS_URL": "https://lms.example.com",
    "SOCIAL_AUTH_EDX_OAUTH2_URL_ROOT": "",
}


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        pytest.param("CELERY_BROKER_URL", "redis://:p@10.0.0.1/5", ["not encrypted"], id="Redis"),
        pytest.param(
            "CELERY_BROKER_URL", "redis://10.0.0.1/5", ["not encrypted", "no password"], id="with no password"
        ),
        pytest.param("CELERY_BROKER_URL", "redis://u@10.0.0.1/5", ["not encrypted", "no password"], id="a user alone"),
        pytest.param("CELERY_BROKER_URL", "rediss://:p@r/5?ssl_cert_reqs=none", ["any certificate"], id="unverified"),
        pytest.param("CELERY_BROKER_URL", "rediss://:p@r/5?ssl_cert_reqs=optional", ["any certificate"], id="optional"),
        pytest.param("CELERY_BROKER_URL", "amqp://u:p@rabbit//", ["not encrypted"], id="RabbitMQ"),
        pytest.param("CELERY_RESULT_BACKEND", "redis://:p@10.0.0.1/5", ["not encrypted"], id="results"),
        pytest.param("DATABASE_URL", "mysql+pymysql://u:p@db/d", ["not encrypted"], id="MySQL"),
        pytest.param("DATABASE_URL", "postgresql+psycopg://u:p@db/d", ["not encrypted"], id="PostgreSQL"),
        pytest.param("DATABASE_URL", "postgresql+psycopg://u:p@db/d?sslmode=prefer", ["not encrypted"], id="if it can"),
        pytest.param("DATABASE_URL", "postgresql+psycopg://u:p@db/d?sslmode=require", ["any certificate"], id="any"),
        pytest.param("DATABASE_URL", "postgresql+psycopg://u:p@/d?host=db", ["not encrypted"], id="a host in options"),
        pytest.param("LMS_URL", "http://lms:8000", ["not encrypted"], id="the LMS"),
        pytest.param("SOCIAL_AUTH_EDX_OAUTH2_URL_ROOT", "http://lms:8000", ["not encrypted"], id="the token's address"),
    ],
)
def test_each_is_warned_of_by_name(name: str, value: str, words: list[str]) -> None:
    found = list(exposed(SAFE | {name: value}))
    assert [word for (what, _), word in zip(found, words, strict=True) if word not in what] == []
    assert all(what.startswith(name) and remedy for what, remedy in found)
    assert ":p@" not in str(found)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("CELERY_BROKER_URL", "redis://127.0.0.1/5", id="loopback"),
        pytest.param("CELERY_BROKER_URL", "redis://localhost/5", id="by name"),
        pytest.param("CELERY_BROKER_URL", "redis://[::1]/5", id="IPv6"),
        pytest.param("CELERY_BROKER_URL", "amqps://u:p@rabbit//", id="RabbitMQ with TLS: always verified"),
        pytest.param("CELERY_BROKER_URL", "memory://", id="memory"),
        pytest.param("CELERY_BROKER_URL", "", id="none"),
        pytest.param("DATABASE_URL", "sqlite:////tmp/x", id="a file"),
        pytest.param("DATABASE_URL", "mysql+pymysql://u:p@/d?unix_socket=/run/my.sock", id="a socket"),
        pytest.param("DATABASE_URL", "postgresql+psycopg:///d?host=/var/run/postgresql", id="another socket"),
        pytest.param("DATABASE_URL", "mysql+pymysql://u:p@db/d?ssl_ca=/ca.pem", id="MySQL verified"),
        pytest.param("LMS_URL", "http://127.0.0.1:8000", id="the demo"),
    ],
)
def test_what_is_safe_is_not(name: str, value: str) -> None:
    assert list(exposed(SAFE | {name: value})) == []
