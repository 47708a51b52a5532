"""What a URL may look like: whatever is taken is read alike by all who read it, and no complaint shows any of it."""

from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import example, given, strategies as st
from kombu.utils.url import url_to_parts
from sqlalchemy import make_url
from support.settings import Env, complaints, refused

from worker.masking import mask
from worker.settings import urls
from worker.settings.sources import WrongValue

AMBIGUOUS = [
    pytest.param("CELERY_BROKER_URL", "redis://:1/SECRET@h/5", id="a slash: the port would be 1"),
    pytest.param("CELERY_BROKER_URL", "redis://:a#SECRET@h/5", id="a hash"),
    pytest.param("CELERY_BROKER_URL", "redis://:a?SECRET@h/5", id="a question mark"),
    pytest.param("CELERY_BROKER_URL", "redis://:a@SECRET@h/5", id="two @"),
    pytest.param("CELERY_BROKER_URL", "redis://:SECRET x@h/5", id="a space"),
    pytest.param("CELERY_BROKER_URL", "redis://:SECRET@h1/5;redis://:SECRET@h2/5", id="a list"),
    pytest.param("CELERY_BROKER_URL", "redis://:SECRET@h/five", id="a database without a number"),
    pytest.param("CELERY_BROKER_URL", "redis://:SECRET@h:99999/5", id="a port that is none"),
    pytest.param("CELERY_BROKER_URL", "rediss://:SECRET@h/5?ssl_cert_reqs=", id="no word on certificates"),
    pytest.param("CELERY_BROKER_URL", "rediss://:SECRET@h/5?ssl_cert_reqs=requird", id="a misspelt one"),
    pytest.param("CELERY_BROKER_URL", "redis://:SECRET@h/5?ssl_cert_reqs=requird", id="a misspelt one without TLS"),
    pytest.param(
        "CELERY_BROKER_URL", "rediss://:SECRET@h/5?ssl_cert_reqs=required&ssl_ca_certs=/nope", id="no such CA"
    ),
    pytest.param("CELERY_BROKER_URL", "amqps://u:SECRET@h//?ssl_cert_reqs=none", id="TLS options of a RabbitMQ"),
    pytest.param("CELERY_RESULT_BACKEND", "redis://:SECRET@h1/5;redis://:SECRET@h2/5", id="a list of backends"),
    pytest.param("CELERY_RESULT_BACKEND", "redis://:SECRET@h/five", id="a backend without a number"),
    pytest.param("DATABASE_URL", "mysql://u:short@SECRET@h/d", id="two @ of a database"),
    pytest.param("DATABASE_URL", "postgresql://u:a/SECRET@h/d", id="a slash of a database"),
    pytest.param("DATABASE_URL", "mysql://u:SECRET@h:port/d", id="a port in letters"),
    pytest.param("DATABASE_URL", "mysql://u:SECRET@h/d?ssl_ca=/nope", id="no such CA of MySQL"),
    pytest.param("DATABASE_URL", "postgresql://u:SECRET@h/d?sslrootcert=/nope", id="no such CA of PostgreSQL"),
    pytest.param("LMS_URL", "https://u:SECRET@lms.example.com", id="a login for the LMS"),
    pytest.param("LMS_URL", "https://lms.example.com/?token=SECRET", id="options of the LMS"),
    pytest.param("FLOWER_URL", "https://u:SECRET@flower", id="a login for Flower"),
    pytest.param("LMS_URL", "https://", id="no host"),
]


@pytest.mark.parametrize(("name", "value"), AMBIGUOUS)
def test_what_can_be_read_in_two_ways_is_refused_by_name_without_a_word_of_it(env: Env, name: str, value: str) -> None:
    env(**{name: value})
    message = refused()
    assert list(complaints(message)) == [name]
    assert "SECRET" not in message


PASSWORDS = st.text(st.characters(exclude_categories=("Z", "C")), min_size=1, max_size=30)


@given(password=PASSWORDS, escaped=st.booleans())
@example(password="p:/?#[]@!$&'()*+,;=%2F", escaped=True)
@example(password="a:b%zz", escaped=False)
def test_a_broker_that_is_taken_is_read_alike_by_kombu(password: str, escaped: bool) -> None:
    url = f"redis://u:{quote(password, safe='') if escaped else password}@redis.example.com:6379/5"
    try:
        urls.broker(url)
    except WrongValue:
        if escaped:
            raise
        return
    parts = url_to_parts(url)
    assert (parts.username, parts.hostname, parts.port, parts.path) == ("u", "redis.example.com", 6379, "5")
    if escaped:
        assert parts.password == password
    assert mask(url) == "redis://u:***@redis.example.com:6379/5" or password == "password"


@given(password=PASSWORDS, escaped=st.booleans())
@example(password="p:/?#[]@!$&'()*+,;=%2F", escaped=True)
def test_a_database_that_is_taken_is_read_alike_by_sqlalchemy(password: str, escaped: bool) -> None:
    url = f"mysql://u:{quote(password, safe='') if escaped else password}@db.example.com:3307/d"
    try:
        read = make_url(urls.database(url))
    except WrongValue:
        if escaped:
            raise
        return
    assert (read.username, read.host, read.port, read.database) == ("u", "db.example.com", 3307, "d")
    if escaped:
        assert read.password == password


@pytest.mark.parametrize(
    "value",
    [
        "redis://",
        "redis://h",
        "redis://h/",
        "redis://[::1]:6379/5",
        "redis://user:pa:ss@h.example.com:6379/5",
        "rediss://:p%40x@h/5?ssl_cert_reqs=CERT_REQUIRED",
        "amqp://guest:guest@h:5672/%2Fvhost",
        "amqp://h//",
        "memory://",
    ],
)
def test_what_is_usual_is_taken(value: str) -> None:
    assert urls.broker(value) == value


@pytest.mark.parametrize(
    "value",
    [
        "postgresql://u:p@h1,h2:5432/d",
        "postgresql:///d?host=/var/run/postgresql",
        "postgresql://u@/d?host=h1:1&host=h2:2",
        "postgresql://u:p@h/d?sslmode=verify-full&sslrootcert=system",
        "mysql://u:p@/d?unix_socket=/run/mysqld/mysqld.sock",
        "sqlite:////tmp/a folder/with @ and #.sqlite3",
    ],
)
def test_what_is_usual_of_a_database_is_taken(value: str) -> None:
    urls.database(value)


@pytest.mark.parametrize("name", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
@pytest.mark.parametrize("content", [None, "", "no certificates"])
def test_cas_that_cannot_be_read_are_named(
    env: Env, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, content: str | None
) -> None:
    env()
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    monkeypatch.setenv(name, str(path))
    told = complaints(refused())["LMS_URL"]
    assert f"{name} names {path}, which cannot be used" in told
    env(LMS_URL="http://127.0.0.1:8000")  # where no certificate is asked for
    assert urls.http("http://127.0.0.1:8000/") == "http://127.0.0.1:8000"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        pytest.param({"LMS_URL": "http://lms.example.com"}, "LMS_URL", id="http to another machine"),
        pytest.param(
            {"SOCIAL_AUTH_EDX_OAUTH2_URL_ROOT": "http://lms.example.com"},
            "SOCIAL_AUTH_EDX_OAUTH2_URL_ROOT",
            id="the token's address beside https",
        ),
        pytest.param(
            {"SOCIAL_AUTH_EDX_OAUTH2_URL_ROOT": "http://127.0.0.1", "ALLOW_HTTP": "true"},
            "SOCIAL_AUTH_EDX_OAUTH2_URL_ROOT",
            id="beside https it never may",
        ),
        pytest.param(
            {"LMS_URL": "http://localhost", "SOCIAL_AUTH_EDX_OAUTH2_URL_ROOT": "http://lms.example.com"},
            "SOCIAL_AUTH_EDX_OAUTH2_URL_ROOT",
            id="the token's address alone leads away",
        ),
    ],
)
def test_http_beyond_this_machine_is_refused(env: Env, changes: dict[str, str], named: str) -> None:
    env(**changes)
    assert list(complaints(refused())) == [named]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"LMS_URL": "http://127.0.0.1:8000"}, id="loopback"),
        pytest.param({"LMS_URL": "http://[::1]:8000"}, id="IPv6"),
        pytest.param({"LMS_URL": "http://localhost"}, id="by name"),
        pytest.param({"LMS_URL": "http://lms:8000", "ALLOW_HTTP": "true"}, id="allowed, within a cluster"),
        pytest.param(
            {"LMS_URL": "http://lms", "SOCIAL_AUTH_EDX_OAUTH2_URL_ROOT": "https://lms.example.com", "ALLOW_HTTP": "1"},
            id="the token's address is the better one",
        ),
    ],
)
def test_http_is_taken_where_it_is_safe_or_allowed(env: Env, changes: dict[str, str]) -> None:
    env(**changes)
    urls.http(changes["LMS_URL"])
