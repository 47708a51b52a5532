"""Database servers for the bench, with a buffer pool of a chosen size. This machine's own servers stay as they are."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.databases import private_mysql
from support.services import SERVERS

from simulator.processes import Processes, free_port, listens

BUFFER_POOL = "2G"  # holds all tables of 1,000,000 licenses, as a production server's does


@contextmanager
def server(kind: str, folder: Path, buffer_pool: str = BUFFER_POOL) -> Iterator[str]:
    """Give the URL of a server without a database.

    MariaDB and MySQL are started with this buffer pool (such as "128M"), their files in this folder, and stopped at
    the end. PostgreSQL is this machine's own: it reads through the system's page cache, whatever its buffers.
    """
    option = f"innodb-buffer-pool-size={buffer_pool}"
    if kind == "mariadb":
        with _mariadb(folder, option) as url:
            yield url
    elif kind == "mysql":
        with private_mysql(folder, option) as mysql:
            yield mysql.url
    else:
        yield SERVERS[kind]


@contextmanager
def _mariadb(folder: Path, option: str) -> Iterator[str]:
    folder.mkdir(parents=True, exist_ok=True)
    data, port = folder / "data", free_port()
    own = ["--no-defaults", f"--datadir={data}", *(["--user=root"] if os.geteuid() == 0 else [])]
    if not data.exists():
        made = ["mariadb-install-db", *own, "--auth-root-authentication-method=normal", "--skip-test-db"]
        subprocess.run(made, check=True, stdout=subprocess.DEVNULL)
    command = ["mariadbd", *own, f"--{option}", f"--port={port}", "--bind-address=127.0.0.1"]
    command += [f"--socket={folder}/socket", f"--pid-file={folder}/pid"]
    with Processes(folder) as processes:
        processes.start("server", command, lambda: listens(port))
        yield f"mysql+pymysql://root@127.0.0.1:{port}/?ssl_disabled=true"
