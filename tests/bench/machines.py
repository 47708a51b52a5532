"""Machines made of network namespaces: a bridge, and for each machine an address of its own on it. Needs root."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Machines:
    """The host's address on the bridge, and for each machine the words that start a command there."""

    host: str
    words: list[list[str]]


def why_not() -> str:
    """Say why no machines can be made here; "" when they can."""
    if os.geteuid():
        return "network namespaces need root"
    missing = [name for name in ("ip", "socat") if not shutil.which(name)]
    return f"{' and '.join(missing)} not found: apt-get install iproute2 socat" if missing else ""


@contextmanager
def machines(count: int) -> Iterator[Machines]:
    """Make this many; remove them at the end."""
    number = os.getpid()  # so that two benches can be at work
    net, bridge = f"198.18.{number % 250}", f"lxb{number}"  # a network that is kept for benchmarks
    names = [f"lxm{number}n{machine}" for machine in range(count)]
    try:
        _ip(f"link add {bridge} type bridge")
        _ip(f"addr add {net}.1/24 dev {bridge}")
        _ip(f"link set {bridge} up")
        for machine, name in enumerate(names):
            _ip(f"netns add {name}")
            _ip(f"link add lxv{number}n{machine} type veth peer name eth0 netns {name}")
            _ip(f"link set lxv{number}n{machine} master {bridge} up")
            _ip(f"-n {name} addr add {net}.{machine + 2}/24 dev eth0")
            _ip(f"-n {name} link set eth0 up")
            _ip(f"-n {name} link set lo up")
        yield Machines(f"{net}.1", [["ip", "netns", "exec", name] for name in names])
    finally:
        for name in names:
            _ip(f"netns del {name}", check=False)  # its end of the cable goes with it, and so does the other end
        _ip(f"link del {bridge}", check=False)


def _ip(arguments: str, check: bool = True) -> None:
    subprocess.run(["ip", *arguments.split()], check=check, capture_output=not check)
