"""A virtual host of the broker for one run alone: deployments of two runs cannot take each other's messages."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from tests.support.deployment import BROKER

SECONDS = 60


@contextlib.contextmanager
def own_broker() -> Iterator[str]:
    """Give the URL of a broker that nobody else uses: a virtual host, or where none can be made the whole of it."""
    control = _control()
    name = f"migrator-{uuid.uuid4().hex[:12]}"
    user = urlsplit(BROKER).username or "guest"
    if control is None or not (_done(control, "add_vhost", name)):
        with (Path(tempfile.gettempdir()) / "migrator-tests-broker.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield BROKER
        return
    try:
        assert _done(control, "set_permissions", "-p", name, user, ".*", ".*", ".*")
        yield urlunsplit(urlsplit(BROKER)._replace(path=f"/{name}"))
    finally:
        _done(control, "delete_vhost", name)


def _control() -> str | None:
    """The program that makes virtual hosts, if this is the broker's machine and we may."""
    local = urlsplit(BROKER).hostname in ("127.0.0.1", "localhost", "::1")
    search = f"{os.environ['PATH']}:/usr/sbin"
    return shutil.which("rabbitmqctl", path=search) if local and os.geteuid() == 0 else None


def _done(control: str, *arguments: str) -> bool:
    done = subprocess.run([control, "-q", *arguments], capture_output=True, check=False, timeout=SECONDS)
    return done.returncode == 0
