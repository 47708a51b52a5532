"""The errors survive the ways that Celery carries them, and the tree is as it is drawn."""

import json
import pickle
import weakref
from types import SimpleNamespace

import pytest
from support.wire import subclasses

from worker import errors
from worker.errors import (
    BadArgument,
    BatchRefused,
    LicenseExpiryError,
    ReasonedError,
    RunRefused,
    SeveralWrong,
    Unavailable,
    Unusable,
    WrongSetting,
)
from worker.lms.client import LmsClient

# The errors themselves


@pytest.mark.parametrize("kind", [Unavailable, BatchRefused, RunRefused])
def test_an_error_survives_the_ways_that_celery_carries_it(kind: type[ReasonedError]) -> None:
    error = kind("http_503", "the LMS answered 503", retry_after=7.0)
    for carried in (pickle.loads(pickle.dumps(error)), kind(*error.args), kind(*json.loads(json.dumps(error.args)))):
        assert type(carried) is kind
        assert (carried.reason, carried.what, carried.retry_after) == ("http_503", "the LMS answered 503", 7.0)
        assert str(carried) == "the LMS answered 503 [http_503]"


@pytest.mark.parametrize(
    "error",
    [
        Unusable("table a is missing", "run license-expiry init-db", "a"),
        WrongSetting("LMS_URL: is not set", "Set it"),
        BadArgument("no such run", "license-expiry status lists them"),
        SeveralWrong(
            "These are wrong", [WrongSetting("A: is not set", "Set it"), Unusable("table b is missing", "make it")]
        ),
    ],
    ids=lambda error: type(error).__name__,
)
def test_so_does_one_without_a_reason(error: LicenseExpiryError) -> None:
    for carried in (pickle.loads(pickle.dumps(error)), type(error)(*json.loads(json.dumps(error.args)))):
        assert type(carried) is type(error)
        assert (carried.what, carried.remedy) == (error.what, error.remedy)
        assert str(carried).splitlines()[-1].split()[-1] == str(error).split()[-1]


def test_a_caught_error_is_gone_at_once() -> None:
    """It would keep the request's body, with e-mail addresses in it, until the next collection of garbage."""
    gone = weakref.ref(BatchRefused("http_422", "the LMS answered 422"))
    assert gone() is None


def test_the_tree_is_as_its_docstring_draws_it() -> None:
    drawn = {line.split("── ")[1].split()[0] for line in str(errors.__doc__).splitlines() if "── " in line}
    assert drawn == {kind.__name__ for kind in subclasses(errors.LicenseExpiryError) - {errors.LicenseExpiryError}}


def test_the_client_shows_no_secret() -> None:
    client = LmsClient("https://l", "https://l", "k", "not-to-be-seen")
    assert "not-to-be-seen" not in repr(client)
    assert "not-to-be-seen" not in repr(SimpleNamespace(client=client))
