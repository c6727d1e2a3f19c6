"""``/os-services``: list, enable, disable, freeze, thaw."""

from __future__ import annotations

from sqlalchemy.orm import Session

from migrator.api import views
from migrator.api.wsgi import Answer, Json, Request
from migrator.backend_name import BackendName, MalformedBackendName
from migrator.db import services
from migrator.db.models import Service

_OURS = "migrator-"


def binary_name(text: str) -> str:
    """Return our name of a service; operators' scripts name it with another product's prefix (``…-volume``)."""
    return _OURS + text.rpartition("-")[2]


def index(request: Request) -> Answer:
    query = request.query
    binary, host = query.get("binary") or query.get("service"), query.get("host")
    wanted = binary_name(binary) if binary else None
    found = request.read(lambda session: services.states(session, request.conf.service_down_time, binary=wanted))
    shown = [views.service(request, state) for state in found if host is None or is_on(state.service, host)]
    return Answer(200, {"services": shown})


def is_on(service: Service, host: str) -> bool:
    """Tell whether the service is the one named, or one of the machine named."""
    try:
        return BackendName.parse(host).contains(BackendName.parse(service.host))
    except MalformedBackendName:
        return False


def enable(request: Request) -> Answer:
    return _set(request, False, {})


def disable(request: Request) -> Answer:
    return _set(request, True, {})


def disable_log_reason(request: Request) -> Answer:
    return _set(request, True, {"disabled_reason": request.body["disabled_reason"].strip()})


def freeze(request: Request) -> Answer:
    """Keep new volumes away from a backend; those that it has can be used, deleted, and moved elsewhere."""
    return _set_frozen(request, True)


def thaw(request: Request) -> Answer:
    return _set_frozen(request, False)


def _set_frozen(request: Request, frozen: bool) -> Answer:
    host = request.body["host"]
    request.run(lambda session: services.set_frozen(session, host, frozen))
    return Answer(200)


def _set(request: Request, disabled: bool, reason: Json) -> Answer:
    host, service = request.body["host"], request.body.get("service", "")
    binary = binary_name(request.body.get("binary") or service)

    def work(session: Session) -> None:
        services.set_disabled(session, host, binary, disabled, reason.get("disabled_reason"))

    request.run(work)
    status = "disabled" if disabled else "enabled"
    answer = {"host": host, "service": service, "binary": binary, "disabled": disabled, "status": status}
    return Answer(200, {**answer, **reason})
