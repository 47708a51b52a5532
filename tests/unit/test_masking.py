"""No password of a URL and no e-mail address is left in a text, however odd either is."""

import json
import socket

import pytest
from hypothesis import example, given, strategies as st

from worker.errors import BadArgument, SeveralWrong, Unavailable, Unusable
from worker.masking import ADDRESS, kind_of, mask, mask_all


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        pytest.param("redis://:pw@h:1/5 is away", "redis://:***@h:1/5 is away", id="no user"),
        pytest.param("mysql+pymysql://u:pw@h/d", "mysql+pymysql://u:***@h/d", id="a user, who stays"),
        pytest.param("amqp://guest@h.example.com//", "amqp://guest@h.example.com//", id="a user alone"),
        pytest.param("redis://:1/SECRET@h/5", "redis://:***@h/5", id="a slash in the password"),
        pytest.param("mysql://u:short@long@h.example/d", "mysql://u:***@h.example/d", id="an @ in it"),
        pytest.param("redis://:a#b@h", "redis://:***@h", id="a hash"),
        pytest.param("redis://SEC/RET@h", "redis://***@h", id="what is no user"),
        pytest.param("redis://:a@h1;redis://:b@h2/0", "redis://:***@h2/0", id="a list"),
        pytest.param("(redis://:pw@h:1/5)", "(redis://:***@h:1/5)", id="in brackets"),
        pytest.param(
            "postgresql://h/d?user=u&password=x&a=1", "postgresql://h/d?user=u&password=***&a=1", id="in options"
        ),
        pytest.param("http://lms/x?a=jane@x.org&y=1", "http://***@x.org&y=1", id="an address in options"),
        pytest.param(
            "redis://:password@redis:6379/5", "redis://:password@redis:6379/5", id="the remedies' own example"
        ),
        pytest.param("u://:***@h.example.com", "u://:***@h.example.com", id="what is masked"),
        pytest.param("of jane.o'doe+x@x.org.", f"of {ADDRESS}.", id="an address"),
        pytest.param("'jane@x.org'", f"'{ADDRESS}'", id="in quotes"),
        pytest.param("é.ü@bücher.example", ADDRESS, id="not in ASCII"),
        pytest.param("jane%40x.org", ADDRESS, id="as in a URL"),
        pytest.param("celery@ip-1.ec2.internal is ready", "celery@ip-1.ec2.internal is ready", id="a worker"),
        pytest.param("a@b, 5 @ 3, @x.org", "a@b, 5 @ 3, @x.org", id="no address"),
        pytest.param("", "", id="nothing"),
    ],
)
def test_what_becomes_of_a_text(text: str, masked: str) -> None:
    assert mask(text) == masked
    assert mask(masked) == masked


def test_a_worker_named_otherwise_on_this_host_keeps_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.masking.gethostname", lambda: "w1.example.com")
    assert mask("night@w1.example.com") == "night@w1.example.com"
    assert mask("night@w2.example.com") == ADDRESS


UNBROKEN = st.text(st.characters(exclude_categories=("Z", "C")), min_size=1, max_size=40)
AROUND = st.sampled_from(["", " ", "(", "'", "cannot connect to ", "a=1 ", "\n", "Ö"])


@given(password=UNBROKEN, user=st.sampled_from(["", "u", "license_expiry"]), before=AROUND, after=AROUND)
@example(password="p:/?#[]@!$&'()*+,;=%", user="", before="", after="")
def test_no_password_is_left(password: str, user: str, before: str, after: str) -> None:
    secret = f"<{password}>"
    masked = mask(f"{before}redis://{user}:{secret}@redis.example.com:6379/5{after}")
    assert secret not in masked
    assert "redis.example.com:6379/5" in masked, "where it is stays"
    assert mask(masked) == masked


@given(address=st.emails(), before=AROUND, after=AROUND)
def test_no_address_is_left(address: str, before: str, after: str) -> None:
    name, _, host = address.lstrip("'").rpartition("@")  # quotes before it are not of it
    last = host.rpartition(".")[2]
    if name and last[:1].isalpha() and len(last) > 1:
        assert f"{name}@{host}" not in mask(f"{before}{address}{after}")


def test_each_text_of_a_value_is_masked_and_the_rest_stays() -> None:
    secret = {"a": ["jane@x.org", ("redis://:pw@h", 5, 1.5, None, True)], "jane@x.org": ValueError("jane@x.org")}
    masked = mask_all(secret)
    assert masked["a"] == [ADDRESS, ["redis://:***@h", 5, 1.5, None, True]]
    assert "jane" not in json.dumps(masked)


def test_an_error_of_ours_is_masked_as_it_is_made() -> None:
    secret = "redis://:pw@h of jane@x.org"
    errors = [
        Unavailable("http_503", secret, secret, 7.0),
        BadArgument(secret, secret, {"reason": secret}),
        SeveralWrong("these", [Unusable(secret, secret)]),
    ]
    for error in errors:
        shown = f"{error} {error!r} {error.args} {vars(error)}"
        assert "pw" not in shown
        assert "jane" not in shown


@pytest.mark.parametrize(
    ("error", "said"),
    [
        pytest.param(ValueError("jane@x.org"), "ValueError", id="its type"),
        pytest.param(json.JSONDecodeError("jane", "doc", 0), "json.decoder.JSONDecodeError", id="with its module"),
        pytest.param(
            FileNotFoundError(2, "No such file", "/jane"), "FileNotFoundError (No such file)", id="the system's words"
        ),
        pytest.param(
            socket.gaierror(-2, "Name or service not known"), "socket.gaierror (Name or service not known)", id="a name"
        ),
        pytest.param(OSError("jane@x.org"), "OSError", id="an OSError of a library"),
    ],
)
def test_what_is_said_of_an_error_that_is_not_ours(error: Exception, said: str) -> None:
    assert kind_of(error) == said
