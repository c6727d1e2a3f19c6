"""The whole API on a real database and a real message bus, all inside one process; no mocks."""

from __future__ import annotations

import io
import itertools
import json
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import oslo_messaging as messaging
import pytest
import sqlalchemy as sa
from oslo_messaging.rpc import expose

from migrator import conf as config
from migrator import errors, rpc
from migrator.api import app
from migrator.context import RequestContext
from migrator.db import api as db_api
from migrator.db import migrations, services, volumes
from migrator.db.models import Attachment, Base, Migration, Service, Snapshot, Volume, VolumeType, utcnow
from migrator.drivers import memory
from migrator.drivers.base import VolumeDriver
from tests.api.plant import DESTINATION as DESTINATION
from tests.api.plant import SOURCE as SOURCE
from tests.api.plant import Plant
from tests.api.storage import Storage
from tests.conftest import Kept

PROJECT = "demo"
DEADLINE_SECONDS = 10.0

_exchanges = itertools.count()


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    text: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def fault(self) -> str:
        """The message of a fault, whatever it is called."""
        (found,) = self.json.values()
        assert found["code"] == self.status
        return str(found["message"])


class Api:
    """The application under test with what it stands on."""

    def __init__(self, directory: Path, sections: str = "", **options: Any) -> None:
        settings = {
            "auth_strategy": "noauth",
            "transport_url": "local://",
            "control_exchange": f"exchange-{next(_exchanges)}",
            "state_path": str(directory),
            "storage_availability_zone": "nova",
            **options,
        }
        lines = ["[DEFAULT]", *(f"{name} = {value}" for name, value in settings.items())]
        lines += ["[oslo_policy]", f"policy_file = {directory}/policy.yaml"]
        path = directory / "api.conf"
        path.write_text("\n".join([*lines, sections]) + "\n")
        self.conf = config.load("migrator-api", [], [str(path)])
        self.db = db_api.connect(self.conf)
        self.bus = rpc.transport(self.conf)
        self.scheduler = rpc.SchedulerClient(self.bus, self.conf)
        self.volume = rpc.VolumeClient(self.bus, self.conf)
        self.app = app.build(self.conf, self.db, self.scheduler, self.volume)

    def close(self) -> None:
        self.bus.cleanup()
        self.db.dispose()

    def __call__(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        token: str | None = "admin",
        version: str | None = None,
        project: str | None = PROJECT,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """Send a request to ``path`` below the project, or as it stands when ``project`` is None."""
        url = urlsplit(path if project is None else f"/v3/{project}{path}")
        text = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        environ: dict[str, Any] = {
            "REQUEST_METHOD": method,
            "SCRIPT_NAME": "",
            "PATH_INFO": unquote(url.path, "latin-1"),
            "QUERY_STRING": url.query,
            "SERVER_NAME": "api.test",
            "SERVER_PORT": "8776",
            "HTTP_HOST": "api.test:8776",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(text),
            "wsgi.errors": io.StringIO(),
            "CONTENT_LENGTH": str(len(text)),
            "CONTENT_TYPE": "application/json",
        }
        sent = dict(headers or {})
        if token is not None:
            sent["X-Auth-Token"] = token
        if version is not None:
            sent["OpenStack-API-Version"] = f"volume {version}"
        environ.update({f"HTTP_{name.upper().replace('-', '_')}": value for name, value in sent.items()})
        got: list[Any] = []

        def start_response(status: str, answered: list[tuple[str, str]], exc_info: Any = None) -> None:
            got[:] = [int(status.split()[0]), {name.lower(): value for name, value in answered}]

        text = b"".join(self.app(environ, start_response))  # type: ignore[arg-type]
        return Answer(got[0], got[1], text)

    # --- rows ---

    def beat(self, host: str, binary: str = services.VOLUME, zone: str = "nova", cluster: str | None = None) -> str:
        return services.beat(self.db, host, binary, zone, cluster)

    def silence(self, host: str, seconds: float) -> None:
        """Let a service have given its last sign of life ``seconds`` ago."""
        at = db_api.now_seconds() - seconds
        self.db.run(lambda s: s.execute(sa.update(Service).where(Service.host == host).values(heartbeat_at=at)))

    def disable(self, host: str, reason: str | None = None) -> None:
        self.db.run(lambda s: services.set_disabled(s, host, services.VOLUME, True, reason))

    def make_volume(self, metadata: dict[str, str] | None = None, **values: Any) -> str:
        row = {
            "id": str(uuid.uuid4()),
            "project_id": PROJECT,
            "user_id": "joe",
            "host": SOURCE,
            "availability_zone": "nova",
            "size": 1,
            "status": "available",
            "attach_status": "detached",
            "multiattach": False,
            "readonly": False,
            "bootable": False,
            **values,
        }
        self.db.run(lambda s: volumes.insert(s, metadata, **row))
        return str(row["id"])

    def make_snapshot(self, volume_id: str, **values: Any) -> str:
        row = {
            "id": str(uuid.uuid4()),
            "volume_id": volume_id,
            "project_id": PROJECT,
            "user_id": "joe",
            "status": "available",
            "volume_size": 1,
            "meta": {},
            "created_at": utcnow(),
            **values,
        }
        self.db.run(lambda s: s.execute(sa.insert(Snapshot).values(**row)))
        return str(row["id"])

    def attach(self, volume_id: str, **values: Any) -> str:
        row = {
            "id": str(uuid.uuid4()),
            "volume_id": volume_id,
            "instance_uuid": str(uuid.uuid4()),
            "attached_host": "compute1",
            "mountpoint": "/dev/vdb",
            "attach_status": "attached",
            "attach_time": utcnow(),
            "created_at": utcnow(),
            **values,
        }
        self.db.run(lambda s: s.execute(sa.insert(Attachment).values(**row)))
        return str(row["id"])

    def make_migration(self, volume_id: str, lock: bool = False, **columns: Any) -> str:
        """Begin a migration and put it where ``columns`` say."""

        def work(session: Any) -> str:
            volume = volumes.get(session, volume_id)
            migration_id = migrations.start(
                session,
                volume,
                user_id="op",
                project_id="ops",
                request_id="req-1",
                source_host=volume.host,
                requested_host=DESTINATION,
                plan="host_copy",
                force_host_copy=False,
                lock_volume=lock,
            )
            assert migration_id is not None
            if columns:
                session.execute(sa.update(Migration).where(Migration.id == migration_id).values(**columns))
            return migration_id

        return self.db.run(work)

    def make_twin(self, volume_id: str, migration_id: str) -> str:
        row = self.migration(migration_id)
        return self.make_volume(
            id=row.destination_volume_id,
            twin_of=volume_id,
            migration_id=migration_id,
            migration_status=f"target:{volume_id}",
            host=DESTINATION,
        )

    def get_volume(self, volume_id: str) -> Volume:
        return self.db.read(lambda s: volumes.get(s, volume_id, deleted=True))

    def migration(self, migration_id: str) -> Migration:
        return self.db.read(lambda s: migrations.get(s, migration_id))

    def contents(self) -> dict[str, list[Any]]:
        """Every row of every table that a request may change."""
        tables = (Volume, Migration, Snapshot, Service, VolumeType, Attachment)
        with self.db.engine.connect() as connection:
            return {
                table.__tablename__: sorted(map(repr, connection.execute(sa.select(table.__table__))))
                for table in tables
            }


@dataclass
class Peers:
    """Real RPC servers in the place of the scheduler and the volume services: they note what they are told."""

    heard: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    pools: list[dict[str, Any]] = field(default_factory=list)
    #: What initialize_connection and terminate_connection raise, and what is done before the first answers.
    refusal: errors.MigratorError | None = None
    refusal_to_end: errors.MigratorError | None = None
    meanwhile: Callable[[], Any] = lambda: None
    #: What check_pool answers.
    against_staying: str | None = None
    servers: list[Any] = field(default_factory=list)
    _news: threading.Condition = field(default_factory=threading.Condition)

    def note(self, who: str, method: str, values: dict[str, Any]) -> None:
        with self._news:
            self.heard.append((who, method, values))
            self._news.notify_all()

    def wait_for(self, who: str, method: str, **values: Any) -> None:
        """Wait until that message has come."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        with self._news:
            while (who, method, values) not in self.heard:
                left = deadline - time.monotonic()
                assert left > 0, f"{who} never heard {method} {values}, only {self.heard}"
                self._news.wait(left)

    def stop(self) -> None:
        """Hear nothing more; the idle threads of the servers end by themselves a second later."""
        for server in self.servers:
            server.stop()


class _Scheduler:
    target = messaging.Target(version=rpc.VERSION)

    def __init__(self, peers: Peers) -> None:
        self._peers = peers

    @expose
    def create_volume(self, context: RequestContext, **values: Any) -> None:
        self._peers.note("scheduler", "create_volume", values)

    @expose
    def migrate(self, context: RequestContext, **values: Any) -> None:
        self._peers.note("scheduler", "migrate", values)

    @expose
    def check_pool(self, context: RequestContext, **values: Any) -> str | None:
        self._peers.note("scheduler", "check_pool", values)
        return self._peers.against_staying

    @expose
    def get_pools(self, context: RequestContext, detail: bool, type_id: str | None = None) -> list[dict[str, Any]]:
        self._peers.note("scheduler", "get_pools", {"detail": detail})
        offered = [pool for pool in self._peers.pools if type_id is None or type_id in pool.get("types", ())]
        return offered if detail else [{"name": pool["name"]} for pool in offered]


class _Volume:
    target = messaging.Target(version=rpc.VERSION)

    def __init__(self, peers: Peers, host: str) -> None:
        self._peers = peers
        self._host = host

    @expose
    def create_volume(self, context: RequestContext, **values: Any) -> None:
        self._peers.note(self._host, "create_volume", values)

    @expose
    def delete_volume(self, context: RequestContext, **values: Any) -> None:
        self._peers.note(self._host, "delete_volume", values)

    @expose
    def extend_volume(self, context: RequestContext, **values: Any) -> None:
        self._peers.note(self._host, "extend_volume", values)

    @expose
    def create_snapshot(self, context: RequestContext, **values: Any) -> None:
        self._peers.note(self._host, "create_snapshot", values)

    @expose
    def delete_snapshot(self, context: RequestContext, **values: Any) -> None:
        self._peers.note(self._host, "delete_snapshot", values)

    @expose
    def run_migration(self, context: RequestContext, **values: Any) -> None:
        self._peers.note(self._host, "run_migration", values)

    @expose
    def clean_up(self, context: RequestContext, **values: Any) -> None:
        self._peers.note(self._host, "clean_up", values)

    @expose
    @messaging.expected_exceptions(errors.MigratorError)  # type: ignore[untyped-decorator]
    def initialize_connection(self, context: RequestContext, **values: Any) -> dict[str, Any]:
        self._peers.note(self._host, "initialize_connection", values)
        self._peers.meanwhile()
        if self._peers.refusal is not None:
            raise self._peers.refusal
        data = {"device_path": f"/srv/volume-{values['volume_id']}", "auth_password": "s3cret"}
        return {"driver_volume_type": "gpfs", "data": data}

    @expose
    @messaging.expected_exceptions(errors.MigratorError)  # type: ignore[untyped-decorator]
    def terminate_connection(self, context: RequestContext, **values: Any) -> None:
        self._peers.note(self._host, "terminate_connection", values)
        if self._peers.refusal_to_end is not None:
            raise self._peers.refusal_to_end


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with all tables, to be copied: faster than making them for each test."""
    path = tmp_path_factory.mktemp("tables") / "empty.sqlite"
    engine = sa.create_engine(f"sqlite:///{path}")
    Base.metadata.create_all(engine)
    engine.dispose()
    return path


@pytest.fixture
def make_api(tmp_path: Path, empty_database: Path) -> Iterator[Callable[..., Api]]:
    """Return a function that builds the application with options."""
    made: list[Api] = []

    def make(sections: str = "", **options: Any) -> Api:
        shutil.copy(empty_database, tmp_path / "migrator.sqlite")
        made.append(Api(tmp_path, sections, **options))
        return made[-1]

    yield make
    for api in made:
        api.close()


@pytest.fixture
def api(make_api: Callable[..., Api]) -> Api:
    """The application with two volume services that are up, and a scheduler."""
    made = make_api()
    made.beat("a@file1")
    made.beat("b@file2")
    made.beat("s", services.SCHEDULER)
    return made


@pytest.fixture(params=["sqlite", "mariadb", "postgresql"])
def any_api(request: pytest.FixtureRequest, make_api: Callable[..., Api], kept: Kept) -> Iterator[Api]:
    """The application on each kind of database in turn, with two volume services that are up."""
    sections = "" if request.param == "sqlite" else f"[database]\nconnection = {kept(request.param)}\n"
    made = make_api(sections)
    made.beat("a@file1")
    made.beat("b@file2")
    yield made
    made.db.dispose()


@pytest.fixture
def peers(api: Api) -> Iterator[Peers]:
    """Scheduler and volume services that listen on the application's bus."""
    peers = Peers()
    peers.servers.append(rpc.server(api.bus, rpc.SCHEDULER_TOPIC, "s", [_Scheduler(peers)]))
    for host in ("a@file1", "b@file2"):
        peers.servers.append(rpc.server(api.bus, rpc.VOLUME_TOPIC, host, [_Volume(peers, host)]))
    for server in peers.servers:
        server.start()
    yield peers
    peers.stop()


@pytest.fixture
def plant(api: Api, tmp_path: Path) -> Iterator[Plant]:
    """A real scheduler and real volume services of files on the application's bus."""
    plant = Plant(api, tmp_path)
    yield plant
    plant.stop()


@pytest.fixture
def store(api: Api) -> Iterator[Callable[[VolumeDriver], Storage]]:
    """Return a function that starts the service of a driver on the application's bus."""
    made: list[Storage] = []

    def store(driver: VolumeDriver) -> Storage:
        made.append(Storage(api, driver))
        return made[-1]

    yield store
    for storage in made:
        storage.stop()
    memory.reset()
