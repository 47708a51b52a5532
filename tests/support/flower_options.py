"""The command that a deployment starts Flower by."""

from collections.abc import Sequence

from flower.options import options  # type: ignore[import-untyped]
from tornado.options import OptionParser

LONGEST_SAVE_INTERVAL = 60_000


def keeps_its_list(command: Sequence[str]) -> str:
    """Assert that a Flower started so saves its list of tasks within a minute; give the file."""
    assert list(command[:4]) == ["celery", "-A", "worker", "flower"]
    parser = OptionParser()
    for option in options._options.values():
        if option.name not in parser:  # help is in each
            parser.define(option.name, option.default, option.type, multiple=option.multiple)
    assert parser.parse_command_line([*command[3:]]) == []
    assert parser.persistent
    assert 0 < parser.state_save_interval <= LONGEST_SAVE_INTERVAL
    assert parser.max_tasks <= 20_000, "a save stops Flower for a second"
    return str(parser.db)
