"""Masks passwords in URLs, and e-mail addresses, in any text."""

import re
from socket import gethostname
from typing import Any

HIDDEN = "***"
ADDRESS = "(an e-mail address)"

# Everything up to the last @ before a space: a password that was not %-escaped may hold any of : / ? # @ and more.
_USER_INFO = re.compile(r"(\w://)(?:([\w.+%-]*)(?::(\S{0,999}))?|\S{0,999})@")
_IN_QUERY = re.compile(r"([?&;](?:\w*password|passwd|pwd|\w*secret)=)[^&;\s'\"]+", re.IGNORECASE)
_LOCAL = r"-\w.+%!#$&^~{|}*/=?`"
_MAIL = re.compile(rf"([{_LOCAL}][{_LOCAL}']{{0,63}})(?:@|%40)((?:[\w-]{{1,63}}\.)+[^\W\d_][\w-]+)")
_EXAMPLE = "password"  # the example in our remedies
_WORKERS = ("celery", "celery-control")  # workers call themselves celery@host.example.com


def mask(text: str) -> str:
    """This text with each URL's password as ***, and without e-mail addresses; masking it again changes nothing."""
    if "@" not in text and "%40" not in text and "=" not in text:
        return text
    text = _USER_INFO.sub(lambda found: f"{found[1]}{_user(found)}@", text)
    return _MAIL.sub(_address, _IN_QUERY.sub(rf"\1{HIDDEN}", text))


def mask_all(value: Any) -> Any:
    """Mask each text in a value for a log line; objects other than texts, numbers and collections become texts."""
    if isinstance(value, bool | int | float | None):
        return value
    if isinstance(value, dict):
        return {mask(str(name)): mask_all(each) for name, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [mask_all(each) for each in value]
    return mask(str(value))


def kind_of(error: BaseException) -> str:
    """Describes an error that is not ours by its type and the system's own words; never by its text.

    Its text may hold anything: a row of a table, an address, a password.
    """
    kind = type(error)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
    words = error.strerror if isinstance(error, OSError) and type(error.errno) is int else None
    return f"{name} ({words})" if words else name


def _user(found: re.Match[str]) -> str:
    user, password = found[2], found[3]
    if user is None:
        return HIDDEN
    return user if password is None else f"{user}:{password if password == _EXAMPLE else HIDDEN}"


def _address(found: re.Match[str]) -> str:
    name, host = found.groups()
    of_a_url = name.startswith("//") or name.endswith(HIDDEN)
    return found[0] if of_a_url or name in _WORKERS or host == gethostname() else ADDRESS
