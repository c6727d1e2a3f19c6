"""Who asks: the request's context, carried from the API through every message."""

from __future__ import annotations

from typing import Any

from oslo_context import context


class RequestContext(context.RequestContext):  # type: ignore[misc]
    """A caller with a project, roles and request ids; ``is_admin`` is what policy makes of the roles."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Only a request's own thread logs under its name; see api/auth.py.
        kwargs.setdefault("overwrite", False)
        super().__init__(*args, **kwargs)


def service_context() -> RequestContext:
    """The context of work that no request began: sweeps, reports, recovery."""
    return RequestContext(is_admin=True, roles=["admin"], user_id=None, project_id=None)
