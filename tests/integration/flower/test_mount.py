"""Flower's own templates, with our links in them."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flower.urls import settings  # type: ignore[import-untyped]

from worker.flower import task_list
from worker.flower.mount import Templates

RUN = "05e6f536-3d37-5577-a56b-b5dbaefe2fc2"


def loaded(root: Path | str) -> Templates:
    return Templates(str(root), namespace={"run_of": task_list.run_of})


def navigation(root: Path | str) -> str:
    names: dict[str, Any] = {"reverse_url": lambda name, *_: f"/{name}", "static_url": str, "handler": None}
    names |= {"active_tab": "tasks", "current_user": None}
    names["handler"] = SimpleNamespace(application=SimpleNamespace(options=SimpleNamespace(auth="")))
    return loaded(root).load("navbar.html").generate(**names).decode()


def test_the_link_stands_last_in_the_first_list_of_flower_s_bar() -> None:
    links = re.findall(r'href="/(\w+)"', navigation(settings["template_path"]).partition("</ul>")[0])
    assert links == ["main", "workers", "tasks", "broker", "runs"]


@pytest.mark.parametrize("name", ["navbar.html", "task.html"])
def test_a_template_without_its_marker_stays_as_it_is(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("<p>changed by a newer Flower</p>")
    assert loaded(tmp_path).load(name).generate() == b"<p>changed by a newer Flower</p>"


@pytest.mark.parametrize(
    ("kwargs", "run"),
    [
        (f"Acme/{RUN}", RUN),
        (f"{{'enterprise_customer_uuid': '{RUN[::-1]}', 'run_id': '{RUN}'}}", RUN),
        ("dry_run: True", None),
        (None, None),
        (f"enterprise {RUN}", None),
    ],
)
def test_the_run_of_a_task_is_known(kwargs: str | None, run: str | None) -> None:
    found = task_list.run_of(SimpleNamespace(kwargs=kwargs))
    assert (found and str(found)) == run


@pytest.mark.parametrize(
    ("exception", "shown"),
    [
        (None, None),
        ("", ""),
        ("short", "short"),
        ("x" * 100, "x" * 70 + "…"),
        (
            "away: look at the LMS; retried at 2026-12-01 20:03:07 UTC; tries left: 3 [http_503]",
            "http_503, next try 20:03:07 UTC: away: look at the LMS; retried at 202…",
        ),
    ],
)
def test_an_exception_begins_with_its_reason_and_the_next_try(exception: str | None, shown: str | None) -> None:
    task = task_list.in_list(SimpleNamespace(exception=exception))
    assert (task.exception or "")[:70] == (shown or "")[:70]
    assert len(task.exception or "") <= 71
