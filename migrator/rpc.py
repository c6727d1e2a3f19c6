"""The messages between processes: typed clients, each method says cast or call.

Messages carry ids and plain values.  The database is the truth and a message only a nudge: one that is lost or comes
twice is repaired by the sweeps, so every cast may be dropped and every handler may be run again.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import importlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import oslo_messaging as messaging
from oslo_config import cfg
from oslo_messaging.rpc import dispatcher

from migrator import errors
from migrator.backend_name import BackendName
from migrator.conf import Conf
from migrator.context import RequestContext, service_context

LOG = logging.getLogger(__name__)

SCHEDULER_TOPIC = "migrator-scheduler"
VOLUME_TOPIC = "migrator-volume"
VERSION = "1.0"

#: A broker that is silent for about twice this, seconds, is left for a new connection; oslo.messaging's own 60 would
#: outlast the leases, and every call that waits meanwhile.
HEARTBEAT_SECONDS = 15
#: Casts that may wait for the broker in a process whose clients must not; beyond, they are left to the sweeps.
UNSENT_CASTS = 1000
#: Calls that such a process has under way at once, each in a thread of its own; one more is refused.
UNANSWERED_CALLS = 200
#: Seconds that a request waits for the first connection to the broker, and beyond a call's own time for a broker that
#: is silent; so often more than once such a call is sent before the broker is given up.
CONNECT_SECONDS, SILENCE_SECONDS, RESENDS = 5.0, 2.0, 1

#: Errors of ours that cross the bus as themselves.
_ALLOWED_MODULES = ["migrator.errors"]


class _Serializer(messaging.NoOpSerializer):  # type: ignore[misc]
    """Contexts as dicts, without tokens."""

    def serialize_context(self, context: RequestContext) -> dict[str, Any]:
        values: dict[str, Any] = context.to_dict()
        for secret in ("auth_token", "service_token"):
            values.pop(secret, None)
        return values

    def deserialize_context(self, context: dict[str, Any]) -> RequestContext:
        """Called by the thread that is about to answer, and that had another request's context before."""
        found: RequestContext = RequestContext.from_dict(context)
        found.take_thread()
        return found


def transport(conf: Conf) -> messaging.Transport:
    """Open the message bus of ``transport_url``."""
    _register_stray_options(conf)
    bus = messaging.get_rpc_transport(conf, allowed_remote_exmods=_ALLOWED_MODULES)
    with contextlib.suppress(cfg.NoSuchOptError, cfg.NoSuchGroupError):  # a bus without a broker
        conf.set_default("heartbeat_timeout_threshold", HEARTBEAT_SECONDS, group="oslo_messaging_rabbit")
    return bus


#: Groups whose options oslo.messaging reads from our configuration but registers on the global one only (18.3).
_STRAY_GROUPS = {
    "oslo_messaging_metrics": "oslo_messaging._metrics.client",
    "oslo_messaging_tracing": "oslo_messaging._tracing.client",
}


def _register_stray_options(conf: Conf) -> None:
    for group, module in _STRAY_GROUPS.items():
        with contextlib.suppress(ImportError):  # a release without it
            conf.register_opts(getattr(importlib.import_module(module), group), group=group)


def server(bus: messaging.Transport, topic: str, name: str, endpoints: Sequence[object]) -> messaging.RPCServer:
    """A server for ``endpoints``, not started; ``name`` is the host a message can be addressed to."""
    return messaging.get_rpc_server(
        bus,
        messaging.Target(topic=topic, server=name),
        list(endpoints),
        executor="threading",
        serializer=_Serializer(),
        access_policy=dispatcher.ExplicitRPCAccessPolicy,
    )


class Outbox:
    """Sends in threads of its own, so that whoever answers a request waits for the broker for a bounded time only.

    A sender waits as long as the broker is away, and with a silent one for its heartbeat.  Of casts, what waits longer
    than ``UNSENT_CASTS`` others is dropped, and a sweep repairs that; a call is given up when its time is over.
    """

    def __init__(self, bus: messaging.Transport) -> None:
        self._unsent: queue.Queue[Callable[[], None]] = queue.Queue(UNSENT_CASTS)
        self._calls = threading.BoundedSemaphore(UNANSWERED_CALLS)
        self._connected = threading.Event()
        threading.Thread(target=self._send_forever, name="casts", daemon=True).start()
        threading.Thread(target=self._connect, args=(bus,), name="first call", daemon=True).start()

    def _connect(self, bus: messaging.Transport) -> None:
        """Ask for nothing of use: the first call opens the queue of answers, and waits for ever until it has.

        Made by a request, that call would be sent whenever the broker comes back, long after the request was refused.
        """
        target = messaging.Target(topic=SCHEDULER_TOPIC, version=VERSION)
        client = messaging.get_rpc_client(bus, target, serializer=_Serializer(), timeout=1, retry=RESENDS)
        try:
            client.call(service_context(), "get_pools", detail=False)
        except Exception as error:  # the top of the thread; without an answer the queue of answers is open all the same
            LOG.debug("The first call: %s", error)
        self._connected.set()

    def call(self, send: Callable[[], Any], seconds: float) -> Any:
        """Return what ``send`` returns or raise what it raises; after so many seconds and some, ServiceUnavailable.

        What a silent broker took may be done later, as after any call that was not answered in time.
        """
        if not self._connected.wait(min(seconds, CONNECT_SECONDS)):
            raise _broker_away("no connection to it yet; see transport_url and whether it runs")
        if not self._calls.acquire(blocking=False):
            raise _broker_away(f"{UNANSWERED_CALLS} calls wait for their answers")
        answer: concurrent.futures.Future[Any] = concurrent.futures.Future()
        threading.Thread(target=self._answer, args=(send, answer), name="call", daemon=True).start()
        try:
            return answer.result(seconds + SILENCE_SECONDS)
        except concurrent.futures.TimeoutError:
            raise _broker_away(f"it did not take the message within {seconds + SILENCE_SECONDS:g} s") from None

    def _answer(self, send: Callable[[], Any], answer: concurrent.futures.Future[Any]) -> None:
        try:
            answer.set_result(send())
        except BaseException as error:  # the top of the thread; whoever waits raises it
            answer.set_exception(error)
        finally:
            self._calls.release()

    def put(self, send: Callable[[], None]) -> None:
        try:
            self._unsent.put_nowait(send)
        except queue.Full:
            LOG.warning("%d messages wait for the broker; one more is left to the next sweep", UNSENT_CASTS)

    def _send_forever(self) -> None:
        while True:
            send = self._unsent.get()
            try:
                send()
            except Exception:  # the top of the thread: the next message may be luckier
                LOG.exception("A message could not be sent; the next sweep repairs it")


def _broker_away(reason: str) -> errors.ServiceUnavailable:
    return errors.ServiceUnavailable(service="The message broker", reason=reason)


class _Client:
    topic: str

    def __init__(self, bus: messaging.Transport, outbox: Outbox | None = None) -> None:
        """``outbox`` sends for whoever must not wait long; without one all is sent where it is made."""
        target = messaging.Target(topic=self.topic, version=VERSION)
        self._client = messaging.get_rpc_client(bus, target, serializer=_Serializer())
        self._outbox = outbox

    def _cast(self, context: RequestContext, method: str, server: str | None = None, **values: Any) -> None:
        """Send and forget; a broker that is away costs a log line, since the sweep will find the row."""
        client = self._client.prepare(server=server) if server else self._client

        def send() -> None:
            try:
                client.cast(context, method, **values)
            except Exception as error:
                if not _is_of_the_bus(error):
                    raise
                LOG.warning(
                    "Message %s to %s not sent (%s); the next sweep repairs it", method, server or self.topic, error
                )

        if self._outbox is None:
            send()
        else:
            self._outbox.put(send)

    def _fanout(self, method: str, **values: Any) -> None:
        try:
            self._client.prepare(fanout=True).cast(service_context(), method, **values)
        except Exception as error:
            if not _is_of_the_bus(error):
                raise
            LOG.warning("Message %s to every %s not sent: %s", method, self.topic, error)

    def _call(
        self, context: RequestContext, method: str, server: str | None, timeouts: dict[str, float], **values: Any
    ) -> Any:
        seconds = timeouts["timeout"]
        addressed = {"server": server} if server is not None else {}
        resends = {"retry": RESENDS} if self._outbox is not None else {}
        client = self._client.prepare(**addressed, **timeouts, **resends)
        with _translated(f"{self.topic} on {server}" if server is not None else self.topic, seconds):
            if self._outbox is None:
                return client.call(context, method, **values)
            return self._outbox.call(lambda: client.call(context, method, **values), seconds)


@contextlib.contextmanager
def _translated(peer: str, seconds: float) -> Iterator[None]:
    began = time.monotonic()
    try:
        yield
    except errors.MigratorError as error:
        # What the bus makes of an error of ours carries the other process's traceback in its text.
        raise getattr(errors, error.code)(**error.kwargs) from None
    except messaging.MessagingTimeout as error:
        waited = min(seconds, round(time.monotonic() - began, 1))  # less where its death was noticed
        raise errors.ServiceUnavailable(service=peer, reason=f"no answer within {waited:g} s") from error
    except messaging.RemoteError as error:
        raise errors.DriverError(backend=peer, reason=f"{error.exc_type}: {error.value}") from error
    except Exception as error:
        if not _is_of_the_bus(error):
            raise
        raise errors.ServiceUnavailable(service=peer, reason=f"the message broker: {error}") from error


def _is_of_the_bus(error: Exception) -> bool:
    """Tell whether the broker is to blame: oslo.messaging lets some errors of the libraries below it through (18.3)."""
    below = type(error).__module__.partition(".")[0] in ("kombu", "amqp")
    return below or isinstance(error, messaging.MessagingException | OSError)


class SchedulerClient(_Client):
    """Messages to any scheduler."""

    topic = SCHEDULER_TOPIC

    def __init__(self, bus: messaging.Transport, conf: Conf, outbox: Outbox | None = None) -> None:
        super().__init__(bus, outbox)
        #: What somebody waits for who only asks.
        self._question = {"timeout": conf.scheduler_rpc_timeout_seconds}

    def create_volume(self, context: RequestContext, volume_id: str) -> None:
        """Cast: choose a pool for a volume that is being created."""
        self._cast(context, "create_volume", volume_id=volume_id)

    def migrate(self, context: RequestContext, migration_id: str) -> None:
        """Cast: pick the destination of a migration."""
        self._cast(context, "migrate", migration_id=migration_id)

    def get_pools(self, context: RequestContext, detail: bool, type_id: str | None = None) -> list[dict[str, Any]]:
        """Call: every pool known, or every one that offers what a volume type asks for; raises ServiceUnavailable."""
        values = {"detail": detail} if type_id is None else {"detail": detail, "type_id": type_id}
        return list(self._call(context, "get_pools", None, self._question, **values))

    def check_pool(self, context: RequestContext, volume_id: str, type_id: str) -> str | None:
        """Call: why the pool that a volume lies on does not do for a type, None: it does; raises ServiceUnavailable."""
        values = {"volume_id": volume_id, "type_id": type_id}
        reason = self._call(context, "check_pool", None, self._question, **values)
        return None if reason is None else str(reason)

    def plan(self, context: RequestContext, volume_id: str, requested_host: str | None) -> dict[str, Any]:
        """Call: which pool a migration would go to, and all that leads there; raises ServiceUnavailable, NotFound."""
        values = {"volume_id": volume_id, "requested_host": requested_host}
        return dict(self._call(context, "plan", None, self._question, **values))

    def update_pools(self, report: dict[str, Any]) -> None:
        """Fanout cast: the pools of one backend as they are now."""
        self._fanout("update_pools", report=report)


class VolumeClient(_Client):
    """Messages to the volume service of one backend, ``host@backend``."""

    topic = VOLUME_TOPIC

    def __init__(self, bus: messaging.Transport, conf: Conf, outbox: Outbox | None = None) -> None:
        super().__init__(bus, outbox)
        self._step = {"timeout": conf.rpc_step_timeout_seconds}
        #: What somebody waits for who only asks.
        self._question = {"timeout": conf.scheduler_rpc_timeout_seconds}
        self._create = {
            "timeout": conf.migration_create_volume_timeout_secs,
            "call_monitor_timeout": conf.rpc_call_monitor_seconds,
        }

    def create_volume(self, context: RequestContext, host: str, volume_id: str) -> None:
        """Cast: create the object of a volume that was placed here."""
        self._cast(context, "create_volume", _service(host), volume_id=volume_id)

    def delete_volume(self, context: RequestContext, host: str, volume_id: str) -> None:
        """Cast: delete a volume marked ``deleting``."""
        self._cast(context, "delete_volume", _service(host), volume_id=volume_id)

    def extend_volume(self, context: RequestContext, host: str, volume_id: str) -> None:
        """Cast: bring a volume marked ``extending`` to its wanted size."""
        self._cast(context, "extend_volume", _service(host), volume_id=volume_id)

    def create_snapshot(self, context: RequestContext, host: str, snapshot_id: str) -> None:
        """Cast: create the object of a snapshot marked ``creating``."""
        self._cast(context, "create_snapshot", _service(host), snapshot_id=snapshot_id)

    def delete_snapshot(self, context: RequestContext, host: str, snapshot_id: str) -> None:
        """Cast: delete a snapshot marked ``deleting``."""
        self._cast(context, "delete_snapshot", _service(host), snapshot_id=snapshot_id)

    def run_migration(self, context: RequestContext, host: str, migration_id: str) -> None:
        """Cast: work on a migration whose source is here."""
        self._cast(context, "run_migration", _service(host), migration_id=migration_id)

    def clean_up(self, context: RequestContext, host: str, service: str) -> None:
        """Cast: go on with what was left on the backend ``service`` by its own service."""
        self._cast(context, "clean_up", _service(host), service=service)

    def manage_volume(self, context: RequestContext, host: str, volume_id: str) -> None:
        """Cast: take over what a volume marked ``managing`` refers to."""
        self._cast(context, "manage_volume", _service(host), volume_id=volume_id)

    def unmanage_volume(self, context: RequestContext, host: str, volume_id: str) -> None:
        """Cast: forget a volume marked ``unmanaging``, and leave what it is on the storage there."""
        self._cast(context, "unmanage_volume", _service(host), volume_id=volume_id)

    def manage_snapshot(self, context: RequestContext, host: str, snapshot_id: str) -> None:
        """Cast: take over what a snapshot marked ``managing`` refers to."""
        self._cast(context, "manage_snapshot", _service(host), snapshot_id=snapshot_id)

    def unmanage_snapshot(self, context: RequestContext, host: str, snapshot_id: str) -> None:
        """Cast: forget a snapshot marked ``unmanaging``, and leave what it is on the storage there."""
        self._cast(context, "unmanage_snapshot", _service(host), snapshot_id=snapshot_id)

    def manageable(self, context: RequestContext, host: str) -> list[dict[str, Any]]:
        """Call: what lies in a pool, or in all pools of a backend."""
        pool = BackendName.parse(host).pool
        return list(self._call(context, "manageable", _service(host), self._step, pool=pool))

    def find_manageable(self, context: RequestContext, host: str, reference: dict[str, Any]) -> dict[str, Any]:
        """Call: what a reference refers to in a pool; raises InvalidInput for what is not there."""
        values = {"pool": BackendName.parse(host).pool, "reference": reference}
        return dict(self._call(context, "find_manageable", _service(host), self._step, **values))

    def report_pools(self) -> None:
        """Fanout cast: every backend sends its pools to the schedulers now."""
        self._fanout("report_pools")

    def create_destination(
        self, context: RequestContext, host: str, migration_id: str, machine: str | None = None
    ) -> dict[str, Any]:
        """Call, minutes: create the twin's object and, for a copy, make it writable; returns a Connection as a dict.

        ``machine``: the one whose copier is to reach it; unless given, that of the service there.

        Raises StepTimeout, ServiceUnavailable or what the driver raised.
        """
        began, allowed = time.monotonic(), self._create["timeout"]
        try:
            values = {"migration_id": migration_id, "machine": machine}
            return dict(self._call(context, "create_destination", _service(host), self._create, **values))
        except errors.ServiceUnavailable as error:
            if time.monotonic() - began < allowed:  # it is away, and may be back soon
                raise
            raise errors.StepTimeout(what=f"Creating the destination on {host}", seconds=allowed) from error

    def delete_destination(self, context: RequestContext, host: str, migration_id: str) -> bool:
        """Call: delete the twin's object; False: it is busy there and will be deleted by that service itself."""
        return bool(self._call(context, "delete_destination", _service(host), self._step, migration_id=migration_id))

    def export_destination(
        self, context: RequestContext, host: str, migration_id: str, machine: str | None = None
    ) -> dict[str, Any]:
        """Call: make the twin writable for a copier on ``machine``; returns a Connection as a dict."""
        values = {"migration_id": migration_id, "machine": machine}
        return dict(self._call(context, "export_destination", _service(host), self._step, **values))

    def uncache_destination(self, context: RequestContext, host: str, migration_id: str) -> None:
        """Call: have the exported twin read from where it is stored, not from that host's memory."""
        self._call(context, "uncache_destination", _service(host), self._step, migration_id=migration_id)

    def initialize_connection(
        self, context: RequestContext, host: str, volume_id: str, connector: dict[str, Any], *, writable: bool
    ) -> dict[str, Any]:
        """Call: offer a volume to a server's host; returns ``driver_volume_type`` and ``data``."""
        values = {"volume_id": volume_id, "connector": connector, "writable": writable}
        return dict(self._call(context, "initialize_connection", _service(host), self._step, **values))

    def terminate_connection(
        self, context: RequestContext, host: str, volume_id: str, connector: dict[str, Any]
    ) -> None:
        """Call: take a volume back from a server's host."""
        values = {"volume_id": volume_id, "connector": connector}
        self._call(context, "terminate_connection", _service(host), self._step, **values)

    def is_open(self, context: RequestContext, host: str, volume_id: str) -> bool | None:
        """Call: whether a hypervisor has a volume or a twin open now; None where that cannot be told."""
        found = self._call(context, "is_open", _service(host), self._question, volume_id=volume_id)
        return None if found is None else bool(found)

    def revoke_destination(self, context: RequestContext, host: str, migration_id: str) -> bool:
        """Call: end every export of the twin; True if whoever still has one open cannot write through it any more."""
        return bool(self._call(context, "revoke_destination", _service(host), self._step, migration_id=migration_id))

    def can_assist(
        self, context: RequestContext, host: str, volume_id: str, location: dict[str, Any] | None
    ) -> dict[str, Any]:
        """Call: what a volume occupies, and whether its backend could move it itself to the pool at ``location``."""
        values = {"volume_id": volume_id, "location": location}
        return dict(self._call(context, "can_assist", _service(host), self._question, **values))

    def inventory(self, context: RequestContext, host: str) -> dict[str, Any]:
        """Call: what lies in the pools of a backend, as volume/inventory.py describes it."""
        return dict(self._call(context, "inventory", _service(host), self._step))

    def remove_orphan(self, context: RequestContext, host: str, migration_id: str, name: str) -> None:
        """Call: remove what a migration that is over left in the pool ``host``; raises Conflict for anything else."""
        values = {"migration_id": migration_id, "pool": BackendName.parse(host).pool, "name": name}
        self._call(context, "remove_orphan", _service(host), self._step, **values)


def _service(host: str) -> str:
    return BackendName.parse(host).service
