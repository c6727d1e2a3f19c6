"""The message bus inside one process: ``transport_url = local://``.

A driver of oslo.messaging for the embedded default.  A message is handed to its server's executor by the thread that
sends it, so a cast costs microseconds where polling in-memory drivers cost tens of milliseconds.  Two transports with
equal URLs share one bus; messages for a server that does not listen yet wait for it, as on a broker.
"""

from __future__ import annotations

import collections
import concurrent.futures
import json
import threading
from typing import Any

import oslo_messaging
from oslo_messaging._drivers import base

#: Messages kept for one server that does not listen; the oldest is dropped beyond it (the sweeps repair a loss).
MAX_PENDING = 10_000


class _Incoming(base.RpcIncomingMessage):  # type: ignore[misc]
    """One message on its way to a server, with the promise of an answer for a call."""

    def __init__(self, context: dict[str, Any], message: dict[str, Any], answer: _Answer | None) -> None:
        super().__init__(context, message)
        self._answer = answer

    def reply(self, reply: Any = None, failure: Any = None) -> None:
        if self._answer is None or self._answer.done():
            return
        if failure:
            self._answer.set_exception(failure[1])
        else:
            self._answer.set_result(reply)

    def requeue(self) -> None:
        raise AssertionError("RPC messages are never put back")

    def heartbeat(self) -> None:
        """Nothing: a caller in the same process dies with its server."""


_Answer = concurrent.futures.Future[Any]


class _Listener(base.Listener):  # type: ignore[misc]
    """A server's end: messages go straight to its callback, which hands them to its executor."""

    def __init__(self, bus: _Bus, topic: str, server: str) -> None:
        super().__init__(batch_size=1, batch_timeout=None)
        self.topic, self.server = topic, server
        self._bus = bus

    def start(self, on_incoming_callback: Any) -> None:
        super().start(on_incoming_callback)
        self._bus.add(self)

    def stop(self) -> None:
        self._bus.remove(self)
        super().stop()

    def cleanup(self) -> None:
        """Nothing is left to clean."""


class _Bus:
    """Who listens to what, and what waits for listeners."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: dict[str, list[_Listener]] = collections.defaultdict(list)
        self._pending: dict[tuple[str, str | None], collections.deque[_Incoming]] = {}

    def add(self, listener: _Listener) -> None:
        with self._lock:
            self._listeners[listener.topic].append(listener)
            kept = [self._pending.pop((listener.topic, server), ()) for server in (listener.server, None)]
        for incoming in (message for queue in kept for message in queue):
            listener.on_incoming_callback([incoming])

    def remove(self, listener: _Listener) -> None:
        with self._lock:
            self._listeners[listener.topic].remove(listener)

    def send(self, topic: str, server: str | None, fanout: bool, incoming: _Incoming) -> None:
        with self._lock:
            listeners = self._listeners[topic]
            if fanout:
                chosen = list(listeners)
            else:
                chosen = [listener for listener in listeners if server in (None, listener.server)][:1]
                if chosen and server is None:  # the next message goes to the next server of the topic
                    listeners.append(listeners.pop(listeners.index(chosen[0])))
                if not chosen:
                    queue = self._pending.setdefault((topic, server), collections.deque(maxlen=MAX_PENDING))
                    queue.append(incoming)
        for listener in chosen:
            listener.on_incoming_callback([incoming])


_BUSES: dict[str, _Bus] = collections.defaultdict(_Bus)


class LocalDriver(base.BaseDriver):  # type: ignore[misc]
    """The ``local`` transport of oslo.messaging."""

    def __init__(self, conf: Any, url: Any, default_exchange: Any = None, allowed_remote_exmods: Any = None) -> None:
        super().__init__(conf, url, default_exchange, allowed_remote_exmods)
        self._bus = _BUSES[str(url)]

    def require_features(self, requeue: bool = True) -> None:
        """Nothing that RPC needs is missing."""

    def send(
        self,
        target: Any,
        ctxt: dict[str, Any],
        message: dict[str, Any],
        wait_for_reply: bool | None = None,
        timeout: float | None = None,
        call_monitor_timeout: float | None = None,
        retry: int | None = None,
        transport_options: Any = None,
    ) -> Any:
        answer: _Answer | None = concurrent.futures.Future() if wait_for_reply else None
        # Through JSON, so that both ends never share an object and what a broker would refuse is refused here too.
        copied: dict[str, Any] = json.loads(json.dumps(message))
        self._bus.send(target.topic, target.server, bool(target.fanout), _Incoming(dict(ctxt), copied, answer))
        if answer is None:
            return None
        try:
            return answer.result(timeout)
        except concurrent.futures.TimeoutError as error:
            if answer.done():
                raise
            raise oslo_messaging.MessagingTimeout(f"no answer on {target.topic} {target.server or ''}") from error

    def send_notification(self, target: Any, ctxt: Any, message: Any, version: Any, retry: Any = None) -> None:
        self._bus.send(target.topic, None, False, _Incoming(dict(ctxt), message, None))

    def listen(self, target: Any, batch_size: int, batch_timeout: float | None) -> _Listener:
        return _Listener(self._bus, target.topic, target.server)

    def listen_for_notifications(
        self, targets_and_priorities: Any, pool: Any, batch_size: int, batch_timeout: float | None
    ) -> _Listener:
        target, priority = next(iter(targets_and_priorities))
        return _Listener(self._bus, f"{target.topic}.{priority}", "notifications")

    def cleanup(self) -> None:
        """The bus lives as long as the process."""
