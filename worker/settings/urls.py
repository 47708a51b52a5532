"""Checks the URLs among the settings. A complaint holds nothing of the URL: it may have a password."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import parse_qsl

from worker.settings.sources import WrongValue

_DRIVERS = {
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "mysql": "mysql+pymysql",
    "mariadb": "mariadb+pymysql",
}
_BROKERS = ("redis", "rediss", "amqp", "amqps", "memory")
# The options of each driver that name a file; PostgreSQL's "system" is not a file.
_FILES = (
    "ssl_ca_certs",
    "ssl_certfile",
    "ssl_keyfile",
    "ssl_ca",
    "ssl_cert",
    "ssl_key",
    "sslrootcert",
    "sslcert",
    "sslkey",
)
_BUNDLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")  # in requests' order
_CHECKED, _UNCHECKED = ("required", "CERT_REQUIRED"), ("none", "CERT_NONE", "optional", "CERT_OPTIONAL")
_AMBIGUOUS = (
    "is an ambiguous URL: programs can parse it differently",
    "%-escape the special characters of its user and password: @ is %40, : is %3A, / is %2F, # is %23, ? is %3F, "
    "; is %3B, % is %25",
)
_KEEP_TLS = "Keep TLS: rediss://:password@redis:6379/5?ssl_cert_reqs=required"
# ASCII, and no part holds a character that begins the next one: every parser then reads it alike.
_FORM = re.compile(
    r"(?P<scheme>[a-z+]+)://(?:(?P<user>[^\s:/?#@;\[\]]*)(?::(?P<password>[^\s/?#@;\[\]]*))?@)?"
    r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s:/?#@;\[\]]*)(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<path>/[^\s?#;@]*)?(?:\?(?P<query>.*))?"
)


def is_loopback(host: str) -> bool:
    """Whether this host, a name in small letters or an address, is this machine by its loopback."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class Url:
    """A URL that all programs read alike."""

    scheme: str
    host: str
    path: str
    has_password: bool
    options: Mapping[str, str]

    @property
    def is_local(self) -> bool:
        """Whether it leads to this machine: to its loopback, to a socket, or to a file."""
        host = self.options.get("host", self.host)
        return not host or host.startswith("/") or is_loopback(host.lower())

    @property
    def danger(self) -> str:
        """The weakness of its connection: not encrypted, or any certificate taken; "" if it has none or stays local."""
        secure, checked = self._tls()
        if self.is_local or (secure and checked):
            return ""
        return "takes any certificate" if secure else "is not encrypted"

    def _tls(self) -> tuple[bool, bool]:
        """Whether it is always encrypted, and whether the server's certificate is checked."""
        kind, options = self.scheme.partition("+")[0], self.options
        if kind == "rediss":
            return True, options.get("ssl_cert_reqs") in _CHECKED
        if kind in ("mysql", "mariadb"):
            return "ssl_ca" in options or "ssl_capath" in options, True
        if kind == "postgresql":
            mode = options.get("sslmode")
            return mode in ("require", "verify-ca", "verify-full"), mode == "verify-full"
        return kind in ("https", "amqps", "sqlite", "memory"), True


def read(value: str) -> Url:
    """The parts of a URL that `broker`, `database` or `http` has taken. Raises WrongValue for another."""
    if value.startswith("sqlite:"):
        return Url("sqlite", "", "", False, {})
    found = _FORM.fullmatch(value) if value.isascii() and value.isprintable() else None
    if not found or int(found["port"] or 0) > 65535:
        raise WrongValue(*_AMBIGUOUS)
    options = dict(parse_qsl(found["query"] or "", keep_blank_values=True))
    host, path = found["host"].strip("[]"), found["path"] or ""
    return Url(found["scheme"], host, path, bool(found["password"]), options)


def broker(value: str) -> str:
    """The URL of a broker. Raises WrongValue."""
    if value.partition("://")[0] not in _BROKERS or "://" not in value:
        raise ValueError("must begin with redis://, rediss://, amqp:// or amqps://")
    return backend(value)


def backend(value: str) -> str:
    """The URL of a result backend. Raises WrongValue."""
    if "://" not in value:
        raise ValueError("is not a URL")
    if value.count("://") > 1 and ";" in value:
        raise WrongValue("is a list", "Give one address, that of the load balancer in front of your brokers")
    url = read(value)
    if re.search(r"[\s#;@]", value.partition("?")[2]):
        raise WrongValue(*_AMBIGUOUS)
    if url.scheme.startswith("redis") and not re.fullmatch("(/[0-9]*)?", url.path):
        raise WrongValue("does not end with the number of a Redis database, such as /5", "Write /0 for the first one")
    said = url.options.get("ssl_cert_reqs", None if url.scheme == "rediss" else "none")
    if said not in (*_CHECKED, *_UNCHECKED):
        raise WrongValue("must end with ?ssl_cert_reqs=required: without it no certificate is checked", _KEEP_TLS)
    if url.scheme.startswith("amqp") and any(name.startswith("ssl") for name in url.options):
        what = "has TLS options, which RabbitMQ does not take: amqps:// always checks the certificate"
        raise WrongValue(what, "Leave them out, and name a CA of your own in SSL_CERT_FILE")
    _require_files(url)
    return value


def database(value: str) -> str:
    """The URL of a database, with the driver that we bring. Raises WrongValue."""
    scheme, there, rest = value.partition("://")
    driver = _DRIVERS.get(scheme, scheme)
    if not there:
        raise ValueError("is not a SQLAlchemy URL")
    if driver not in {*_DRIVERS.values(), "sqlite"}:
        raise ValueError("must begin with mysql://, mariadb://, postgresql:// or sqlite:///")
    _require_files(read(f"{driver}://{rest}"))
    return f"{driver}://{rest}"


def http(value: str) -> str:
    """The address of a web server, without a slash at its end. Raises WrongValue."""
    if not value.startswith(("http://", "https://")):
        raise ValueError("must begin with http:// or https://")
    url = read(value)
    if "@" in value:
        raise WrongValue("must not have a user or a password", "Leave both out: they would be shown, but not used")
    if not url.host or "?" in value:
        raise ValueError("must have a host, and no options")
    return value.rstrip("/")


def require_bundle(value: str) -> None:
    """Raise WrongValue when this address is https and the CA bundle named for requests cannot be read."""
    name = next((name for name in _BUNDLES if os.environ.get(name)), None)
    if name is None or not value.startswith("https:"):
        return
    path = Path(os.environ[name])
    try:
        if path.is_dir() or b"-----BEGIN " in path.read_bytes():
            return
        why = "it is not a PEM file"
    except OSError as error:
        why = str(error.strerror)
    what = f"its certificate cannot be checked: {name} names {path}, which cannot be used ({why})"
    raise WrongValue(what, "Name a PEM file of CAs, or unset it")


def _require_files(url: Url) -> None:
    """Raise WrongValue unless the files that its options name can be read."""
    for name in _FILES:
        path = url.options.get(name)
        if path is None or (name, path) == ("sslrootcert", "system"):
            continue
        try:
            Path(path).read_bytes()
        except OSError as error:
            what = f"its option {name} names a file that cannot be read, {path} ({error.strerror})"
            raise WrongValue(what, "Name the PEM file, and let this user read it") from None
