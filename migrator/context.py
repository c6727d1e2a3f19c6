"""Who asks: the request's context, carried from the API through every message and into whatever follows it."""

from __future__ import annotations

from typing import Any

from oslo_context import context


class RequestContext(context.RequestContext):  # type: ignore[misc]
    """A caller with a project, roles and request ids; ``is_admin`` is what policy makes of the roles."""

    def __init__(self, *, overwrite: bool = False, **values: Any) -> None:
        """``overwrite``: what this thread logs from now on is of this request."""
        super().__init__(**values)
        if overwrite:
            self.take_thread()

    def update_store(self) -> None:
        """Nothing: the library gives a thread the first context that it makes, which then stays in all its lines."""

    def take_thread(self) -> None:
        """Let what this thread logs, and the messages that it writes for users, be of this request from now on."""
        super().update_store()


def current() -> RequestContext | None:
    """Return the context that this thread works for; None: for nobody's, as a sweep does."""
    found = context.get_current()
    return found if isinstance(found, RequestContext) else None


def current_request_id() -> str | None:
    """Return the id of the request that this thread works for."""
    found = current()
    return None if found is None else str(found.request_id)


def service_context() -> RequestContext:
    """The context of what a service does by itself: of sweeps and reports, and of what follows a request, by its id."""
    found = current()
    return RequestContext(
        is_admin=True,
        roles=["admin"],
        request_id=found and found.request_id,
        global_request_id=found and found.global_request_id,
    )
