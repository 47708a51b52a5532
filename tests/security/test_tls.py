"""Another host's certificate is refused on each connection, before a secret is sent; the message says what to do."""

import shutil
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import trustme
from support.services import missing

from simulator.processes import Processes, free_port, listens
from tasks.broker import check_broker
from worker.errors import Away, Unavailable
from worker.lms.client import LmsClient
from worker.lms.patience import Patience

SECRET = "Zebra7Crossing"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """A CA of our own."""
    return trustme.CA()


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> Path:
    """Its certificate as a PEM file."""
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return tmp_path / "ca.pem"


@contextmanager
def serving(certificate: trustme.LeafCert, answer: bytes) -> Iterator[tuple[int, bytearray]]:
    """A TLS server that answers whatever comes; its port, and what it was sent."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    received = bytearray()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with suppress(OSError), context.wrap_socket(connection, server_side=True) as tls:
                    tls.settimeout(5)
                    while SECRET.encode() not in received and (part := tls.recv(65536)):
                        received.extend(part)
                    tls.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listening.getsockname()[1], received
        listening.shutdown(socket.SHUT_RDWR)
        thread.join(10)


BODY = b'{"access_token": "token", "expires_in": 3600}'
TOKEN = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)


@pytest.mark.parametrize(
    ("host", "trusted", "words"),
    [
        pytest.param("localhost", False, "unable to get local issuer certificate", id="an unknown CA"),
        pytest.param("lms.other.example", True, "Hostname mismatch", id="another host's"),
    ],
)
def test_a_certificate_that_does_not_verify_is_named_with_its_cause_and_nothing_is_sent(
    authority: trustme.CA, ca_file: Path, monkeypatch: pytest.MonkeyPatch, host: str, trusted: bool, words: str
) -> None:
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    monkeypatch.delenv("CURL_CA_BUNDLE", raising=False)
    if trusted:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(ca_file))
    with serving(authority.issue_cert(host), TOKEN) as (port, received):
        url = f"https://localhost:{port}"
        client = LmsClient(url, url, "key", SECRET, patience=Patience(tries=1))
        with pytest.raises(Unavailable) as caught:
            client.lms_now()
        client.close()
    told = str(caught.value)
    assert f"the certificate of the LMS at localhost:{port} does not verify ({words}" in told
    assert "REQUESTS_CA_BUNDLE" in told
    assert not received


def test_with_a_private_ca_the_token_is_taken(
    authority: trustme.CA, ca_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(ca_file))
    with serving(authority.issue_cert("localhost"), TOKEN) as (port, received):
        url = f"https://localhost:{port}"
        client = LmsClient(url, url, "key", SECRET, patience=Patience(tries=1))
        client.lms_now()
        client.close()
    assert SECRET.encode() in received


def test_a_ca_file_that_disappears_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "gone.pem"))
    client = LmsClient("https://localhost:1", "https://localhost:1", "key", SECRET, patience=Patience(tries=1))
    with pytest.raises(Unavailable, match=r"the CAs cannot be read: .*REQUESTS_CA_BUNDLE"):
        client.lms_now()
    client.close()


def test_a_proxy_that_is_unreachable_is_named_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setenv("HTTPS_PROXY", f"http://user:{SECRET}@127.0.0.1:{port}")
    client = LmsClient("https://lms.example.com", "https://lms.example.com", "k", "s", patience=Patience(tries=1))
    with pytest.raises(Unavailable) as caught:
        client.lms_now()
    client.close()
    told = str(caught.value)
    assert f"the LMS at lms.example.com, through the proxy http://user:***@127.0.0.1:{port}," in told
    assert "Connection refused" in told
    assert "HTTPS_PROXY" in told
    assert SECRET not in told


App = Callable[[str], object]


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> App:
    """Makes a Celery app with the settings that celeryconfig gives for this broker."""

    def make(url: str) -> object:
        from importlib import reload

        from celery import Celery

        import celeryconfig

        monkeypatch.setenv("CELERY_BROKER_URL", url)
        made = Celery("test")
        made.config_from_object(reload(celeryconfig))
        return made

    return make


@pytest.mark.parametrize(
    ("host", "trusted", "words"),
    [
        pytest.param("localhost", False, "unable to get local issuer certificate", id="an unknown CA"),
        pytest.param("rabbit.other.example", True, "certificate is not valid for", id="another host's"),
    ],
)
def test_a_rabbitmq_with_another_certificate_is_sent_nothing(
    authority: trustme.CA,
    ca_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    app: App,
    host: str,
    trusted: bool,
    words: str,
) -> None:
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(ca_file))
    with serving(authority.issue_cert(host), b"") as (port, received), pytest.raises(Away, match=words):
        check_broker(app(f"amqps://user:{SECRET}@localhost:{port}//"))
    assert not received


@pytest.fixture
def redis_with_tls(authority: trustme.CA, processes: Processes, tmp_path: Path) -> Callable[[str], int]:
    """Starts a Redis that speaks TLS alone, with a certificate for this host; gives its port."""

    def start(host: str) -> int:
        server = shutil.which("redis-server")
        if server is None:
            missing("redis-server", "install redis")
        port, leaf = free_port(), authority.issue_cert(host)
        leaf.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "server.pem"))
        authority.cert_pem.write_to_path(str(tmp_path / "server-ca.pem"))
        pem = str(tmp_path / "server.pem")
        command = [server, "--port", "0", "--tls-port", str(port), "--tls-cert-file", pem, "--tls-key-file", pem]
        command += ["--tls-ca-cert-file", str(tmp_path / "server-ca.pem"), "--tls-auth-clients", "no", "--save", ""]
        processes.start("redis", [*command, "--dir", str(tmp_path), "--requirepass", SECRET], lambda: listens(port))
        return port

    return start


def test_a_redis_with_its_own_certificate_is_used(
    redis_with_tls: Callable[[str], int], ca_file: Path, app: App
) -> None:
    options = f"ssl_cert_reqs=required&ssl_ca_certs={ca_file}"
    check_broker(app(f"rediss://:{SECRET}@localhost:{redis_with_tls('localhost')}/0?{options}"))


def test_a_redis_with_another_hosts_certificate_is_not(
    redis_with_tls: Callable[[str], int], ca_file: Path, app: App
) -> None:
    options = f"ssl_cert_reqs=required&ssl_ca_certs={ca_file}"
    with pytest.raises(Away, match="Hostname mismatch"):
        check_broker(app(f"rediss://:{SECRET}@localhost:{redis_with_tls('redis.other.example')}/0?{options}"))
