"""The user that docs/how-to/accounts.md gives the broker does our work, and nothing to what else is in its Redis."""

import pytest
import redis
from redis.exceptions import NoPermissionError
from support.database_account import SECURITY

BESIDES = [
    ("GET", "another:key"),
    ("SET", "another:key", "x"),
    ("KEYS", "*"),
    ("SCAN", "0"),
    ("RANDOMKEY",),
    ("FLUSHDB",),
    ("FLUSHALL",),
    ("SWAPDB", "5", "0"),
    ("CONFIG", "GET", "*"),
    ("CONFIG", "SET", "dir", "/tmp"),
    ("ACL", "SETUSER", "license_expiry", "+@all"),
    ("MONITOR",),
    ("CLIENT", "LIST"),
    ("CLIENT", "KILL", "TYPE", "normal"),
    ("REPLICAOF", "127.0.0.1", "1"),
    ("MODULE", "LIST"),
    ("SAVE",),
    ("SHUTDOWN",),
    ("MIGRATE", "127.0.0.1", "1", "license_expiry:x", "0", "1"),
    ("EVAL", "return redis.call('GET', 'another:key')", "0"),
    ("FUNCTION", "LOAD", "#!lua name=x\nredis.register_function('x', function() end)"),
    ("SCRIPT", "FLUSH"),
    ("PUBLISH", "another", "x"),
    ("SUBSCRIBE", "another"),
    ("PSUBSCRIBE", "*"),
]


@pytest.fixture
def user(redis_server: redis.Redis) -> redis.Redis:
    """The Redis of the test as this user sees it."""
    [documented] = [line for line in SECURITY.read_text().splitlines() if line.startswith("ACL SETUSER")]
    redis_server.execute_command(*documented.split())  # type: ignore[no-untyped-call]
    redis_server.set("another:key", "another's")
    port = redis_server.connection_pool.connection_kwargs["port"]
    return redis.Redis(port=port, db=5, username="license_expiry", password="a-password")


def test_a_user_of_the_broker_does_nothing_beside_our_keys_and_channels(user: redis.Redis) -> None:
    for command in BESIDES:
        with pytest.raises(NoPermissionError):
            user.execute_command(*command)  # type: ignore[no-untyped-call]
    script = user.script_load("return redis.call('GET', 'another:key')")
    with pytest.raises(redis.exceptions.ResponseError, match=r"permission|can't run this command|access"):
        user.evalsha(script, 0)
    assert user.set("license_expiry:key", "ours")
