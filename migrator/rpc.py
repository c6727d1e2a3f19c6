"""The messages between processes: typed clients, each method says cast or call.

Messages carry ids and plain values.  The database is the truth and a message only a nudge: one that is lost or comes
twice is repaired by the sweeps, so every cast may be dropped and every handler may be run again.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any

import oslo_messaging as messaging
from oslo_messaging.rpc import dispatcher

from migrator import errors
from migrator.backend_name import BackendName
from migrator.conf import Conf
from migrator.context import RequestContext, service_context

LOG = logging.getLogger(__name__)

SCHEDULER_TOPIC = "migrator-scheduler"
VOLUME_TOPIC = "migrator-volume"
VERSION = "1.0"

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
        return RequestContext.from_dict(context)  # type: ignore[no-any-return]


def transport(conf: Conf) -> messaging.Transport:
    """Open the message bus of ``transport_url``."""
    _register_stray_options(conf)
    return messaging.get_rpc_transport(conf, allowed_remote_exmods=_ALLOWED_MODULES)


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


class _Client:
    topic: str

    def __init__(self, bus: messaging.Transport) -> None:
        target = messaging.Target(topic=self.topic, version=VERSION)
        self._client = messaging.get_rpc_client(bus, target, serializer=_Serializer())

    def _cast(self, context: RequestContext, method: str, server: str | None = None, **values: Any) -> None:
        """Send and forget; a broker that is away costs a log line, since the sweep will find the row."""
        client = self._client.prepare(server=server) if server else self._client
        try:
            client.cast(context, method, **values)
        except messaging.MessagingException as error:
            LOG.warning(
                "Message %s to %s not sent (%s); the next sweep repairs it", method, server or self.topic, error
            )

    def _fanout(self, method: str, **values: Any) -> None:
        try:
            self._client.prepare(fanout=True).cast(service_context(), method, **values)
        except messaging.MessagingException as error:
            LOG.warning("Message %s to every %s not sent: %s", method, self.topic, error)

    def _call(
        self, context: RequestContext, method: str, server: str, timeouts: dict[str, float], **values: Any
    ) -> Any:
        with _translated(f"{self.topic} on {server}", timeouts["timeout"]):
            return self._client.prepare(server=server, **timeouts).call(context, method, **values)


@contextlib.contextmanager
def _translated(peer: str, seconds: float) -> Iterator[None]:
    try:
        yield
    except errors.MigratorError as error:
        # What the bus makes of an error of ours carries the other process's traceback in its text.
        raise getattr(errors, error.code)(**error.kwargs) from None
    except messaging.MessagingTimeout as error:
        raise errors.ServiceUnavailable(service=peer, reason=f"no answer within {seconds:g} s") from error
    except messaging.RemoteError as error:
        raise errors.DriverError(backend=peer, reason=f"{error.exc_type}: {error.value}") from error
    except messaging.MessagingException as error:
        raise errors.ServiceUnavailable(service=peer, reason=str(error)) from error


class SchedulerClient(_Client):
    """Messages to any scheduler."""

    topic = SCHEDULER_TOPIC

    def __init__(self, bus: messaging.Transport, conf: Conf) -> None:
        super().__init__(bus)
        self._timeout = conf.scheduler_rpc_timeout_seconds

    def create_volume(self, context: RequestContext, volume_id: str) -> None:
        """Cast: choose a pool for a volume that is being created."""
        self._cast(context, "create_volume", volume_id=volume_id)

    def migrate(self, context: RequestContext, migration_id: str) -> None:
        """Cast: pick the destination of a migration."""
        self._cast(context, "migrate", migration_id=migration_id)

    def get_pools(self, context: RequestContext, detail: bool) -> list[dict[str, Any]]:
        """Call: every pool known; raises ServiceUnavailable."""
        with _translated(self.topic, self._timeout):
            pools = self._client.prepare(timeout=self._timeout).call(context, "get_pools", detail=detail)
        return list(pools)

    def update_pools(self, report: dict[str, Any]) -> None:
        """Fanout cast: the pools of one backend as they are now."""
        self._fanout("update_pools", report=report)


class VolumeClient(_Client):
    """Messages to the volume service of one backend, ``host@backend``."""

    topic = VOLUME_TOPIC

    def __init__(self, bus: messaging.Transport, conf: Conf) -> None:
        super().__init__(bus)
        self._step = {"timeout": conf.rpc_step_timeout_seconds}
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

    def report_pools(self) -> None:
        """Fanout cast: every backend sends its pools to the schedulers now."""
        self._fanout("report_pools")

    def create_destination(self, context: RequestContext, host: str, migration_id: str) -> None:
        """Call, minutes: create the twin's object; raises StepTimeout, ServiceUnavailable or what the driver raised."""
        began, allowed = time.monotonic(), self._create["timeout"]
        try:
            self._call(context, "create_destination", _service(host), self._create, migration_id=migration_id)
        except errors.ServiceUnavailable as error:
            if time.monotonic() - began < allowed:  # it is away, and may be back soon
                raise
            raise errors.StepTimeout(what=f"Creating the destination on {host}", seconds=allowed) from error

    def delete_destination(self, context: RequestContext, host: str, migration_id: str) -> bool:
        """Call: delete the twin's object; False: it is busy there and will be deleted by that service itself."""
        return bool(self._call(context, "delete_destination", _service(host), self._step, migration_id=migration_id))

    def export_destination(self, context: RequestContext, host: str, migration_id: str) -> dict[str, Any]:
        """Call: make the twin writable for the copier; returns a Connection as a dict."""
        return dict(self._call(context, "export_destination", _service(host), self._step, migration_id=migration_id))

    def revoke_destination(self, context: RequestContext, host: str, migration_id: str) -> None:
        """Call: end every export of the twin."""
        self._call(context, "revoke_destination", _service(host), self._step, migration_id=migration_id)


def _service(host: str) -> str:
    return BackendName.parse(host).service
