"""A real Keystone in a process of its own: SQLite, Fernet tokens, its own virtual environment.

``tests/prepare`` installs it and makes its tables, once, outside of the time that the tests take.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

from keystoneauth1 import adapter, session
from keystoneauth1.identity import v3

from tests.support.needs import missing
from tests.support.processes import free_port
from tests.support.waiting import until

HOME = Path(os.environ.get("MIGRATOR_TEST_KEYSTONE", Path.home() / ".cache" / "migrator-tests" / "keystone"))
#: Of the user admin, as tests/prepare has it; of whom the tests make, it is the name twice.
ADMIN_PASSWORD = "opensesame"

#: Serves it by threads; the port is the only argument.  It dies with the tests.
_SERVER = """
import ctypes, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
port = int(sys.argv.pop())  # Keystone reads the arguments, too
from keystone.server.wsgi import initialize_public_application
from werkzeug.serving import WSGIRequestHandler, run_simple
class Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_request(self, *_):
        pass
run_simple("127.0.0.1", port, initialize_public_application(), threaded=True, request_handler=Quiet)
"""


class Keystone:
    """Runs one in ``directory``; the user ``admin`` is an administrator of the project ``admin``."""

    def __init__(self, directory: Path, token_seconds: int = 3600) -> None:
        """``token_seconds``: how long a token lives."""
        if not (HOME / "template").exists():
            missing(f"Keystone is not in {HOME}; tests/prepare puts it there")
        shutil.copytree(HOME / "template", directory)
        self.url = f"http://127.0.0.1:{free_port()}/v3"
        self._config = directory / "keystone.conf"
        self._config.write_text(
            f"[DEFAULT]\npublic_endpoint = {self.url.removesuffix('/v3')}\n"
            f"[database]\nconnection = sqlite:///{directory}/keystone.sqlite\n"
            f"[fernet_tokens]\nkey_repository = {directory}/fernet\n"
            f"[fernet_receipts]\nkey_repository = {directory}/receipts\n"
            f"[credential]\nkey_repository = {directory}/credential\n"
            f"[token]\nexpiration = {token_seconds}\n"
            # The least work: how long it takes to hash a password is not what is tested.
            "[identity]\npassword_hash_rounds = 4\n",
            encoding="utf-8",
        )
        self.log = directory / "keystone.log"
        self._popen = self._start()
        until(self._answers, f"Keystone answers; its log is {self.log}", 60, pause=0.05)
        self._api = adapter.Adapter(self.session(), endpoint_override=self.url)
        # The middleware looks for the identity service itself under its internal interface.
        self.add_service("keystone", "identity", self.url)

    def _start(self) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "OS_KEYSTONE_CONFIG_FILES": str(self._config), "PYTHONWARNINGS": "ignore"}
        command = [str(HOME / "bin" / "python"), "-c", _SERVER, self.url.split(":")[2].removesuffix("/v3")]
        with self.log.open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment)

    def _answers(self) -> bool:
        assert self._popen.poll() is None, self.log.read_text(encoding="utf-8", errors="replace")
        try:
            with urllib.request.urlopen(self.url, timeout=10) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def end(self) -> None:
        self._popen.kill()
        self._popen.wait()

    # --- who is there, and what ---

    def environment(self, user: str, project: str) -> dict[str, str]:
        """What a client's environment says for that user."""
        return {
            "OS_AUTH_URL": self.url,
            "OS_USERNAME": user,
            "OS_PASSWORD": _password(user),
            "OS_PROJECT_NAME": project,
            "OS_USER_DOMAIN_ID": "default",
            "OS_PROJECT_DOMAIN_ID": "default",
            "OS_IDENTITY_API_VERSION": "3",
        }

    def session(self, user: str = "admin", project: str = "admin") -> session.Session:
        """A session by password, as clients make theirs."""
        return session.Session(
            auth=v3.Password(
                self.url,
                username=user,
                password=_password(user),
                user_domain_id="default",
                project_name=project,
                project_domain_id="default",
            )
        )

    def add_project(self, name: str) -> str:
        """Return the new project's id."""
        return self._make("project", name=name, domain_id="default")

    def add_user(self, name: str, project_id: str, *roles: str) -> None:
        """A user with the roles, which are made where they are missing."""
        user_id = self._make("user", name=name, password=_password(name), domain_id="default")
        for role in roles:
            self._api.put(f"/projects/{project_id}/users/{user_id}/roles/{self._role(role)}")

    def add_service(self, name: str, kind: str, url: str) -> str:
        """An entry in the catalog; returns its id."""
        service_id = self._make("service", name=name, type=kind)
        for interface in ("public", "internal"):
            self._make("endpoint", service_id=service_id, interface=interface, url=url)
        return service_id

    def remove_service(self, service_id: str) -> None:
        self._api.delete(f"/services/{service_id}")

    def project_id(self, name: str) -> str:
        return str(self._api.get(f"/projects?name={name}").json()["projects"][0]["id"])

    def _role(self, name: str) -> str:
        known = self._api.get(f"/roles?name={name}").json()["roles"]
        return str(known[0]["id"]) if known else self._make("role", name=name)

    def _make(self, kind: str, **values: Any) -> str:
        return str(self._api.post(f"/{kind}s", json={kind: values}).json()[kind]["id"])


def _password(user: str) -> str:
    return ADMIN_PASSWORD if user == "admin" else user * 2
