"""``/migrations/plan`` and ``POST /migrations``: what a migration would do, and a migration asked for by its own name.

A plan is answered by what the real request runs: the API's checks, the scheduler's choice on its live pools, and the
question to the source's backend whether it can move the volume itself.  It changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from migrator import errors
from migrator.api import blockers, guard, schemas, views, volume_actions
from migrator.api.blockers import Blocker
from migrator.api.wsgi import Answer, Json, Request
from migrator.backend_name import BackendName
from migrator.db import history, measured, migrations
from migrator.db.api import clock
from migrator.db.measured import Measured
from migrator.db.models import Volume

#: Parameters of the query that are numbers.
_NUMBERS = ("bytes_per_second", "keep_source_seconds")
PARAMETERS = ("volume_id", "host", "force_host_copy", "lock_volume", "verify", *_NUMBERS)
#: What the API's own checks have told already, if they refuse the place.
_TOLD_BEFORE = {"service_up", "different_place", "known"}


def show(request: Request) -> Answer:
    """Answer what the query's migration would do."""
    return Answer(200, {"plan": _plan(request, _wanted(request))})


def create(request: Request) -> Answer:
    """Begin a migration, without a host to where the scheduler chooses; with ``dry_run`` tell what it would do."""
    wanted = request.body["migration"]
    if schemas.as_bool(wanted.get("dry_run")):
        return Answer(200, {"plan": _plan(request, wanted)})
    place = _place(wanted)

    def check(session: Session) -> Volume:
        volume = guard.usable(request, session, wanted["volume_id"])
        volume_actions.refuse_place(request, session, volume, place)
        return volume

    volume = request.read(check)
    row = volume_actions.ordered(request, volume, str(place) if place else None, wanted)
    migration_id = volume_actions.start(request, volume, row)
    request.backing.scheduler.migrate(request.context, migration_id)

    def look(session: Session) -> Json:
        found = migrations.get(session, migration_id)
        return views.migration_detail(found, history.steps(session, migration_id), clock(session))

    return Answer(202, {"migration": request.read(look)})


def _place(wanted: Json) -> BackendName | None:
    return volume_actions.parse(wanted["host"]) if wanted.get("host") else None


def _wanted(request: Request) -> Json:
    """Return the query as the body of a POST would have it; raises InvalidInput."""
    wanted: Json = dict(request.query)
    unknown = next((name for name in wanted if name not in PARAMETERS), None)
    if unknown is not None:
        raise errors.InvalidInput(field=unknown[:40], reason=f"it is none of: {', '.join(PARAMETERS)}")
    for name in _NUMBERS:
        text = wanted.get(name, "")
        if text.isascii() and text.isdigit() and len(text) < 20:
            wanted[name] = int(text)
    schemas.MIGRATION_CREATE.check({"migration": wanted}, request.version)
    return wanted


# --- what would happen -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Found:
    """What is known of a wish: the volume, what speaks against it, and what scheduler and source answered."""

    volume: Volume
    place: BackendName | None
    order: Json
    blockers: list[Blocker]
    choice: Json | None
    source: Json | None

    @property
    def destination(self) -> str | None:
        return self.choice["chosen"] if self.choice is not None else None


def _plan(request: Request, wanted: Json) -> Json:
    found = _find_out(request, wanted)
    order, plans = found.order, _plans(found)
    chosen = next((each["plan"] for each in plans if each["chosen"]), None)
    return {
        "volume_id": found.volume.id,
        "possible": not found.blockers,
        "blockers": [_told(blocker) for blocker in found.blockers],
        "source_host": found.volume.host,
        "requested_host": order["requested_host"],
        "destination_host": found.destination,
        "plan": chosen,
        "plans": plans,
        **{key: order[key] for key in ("force_host_copy", "lock_volume", "verify", "bytes_per_second")},
        "keep_source_seconds": order["keep_source_seconds"] if chosen in ("host_copy", None) else 0,
        **_expected(request, found, chosen),
        "pools": found.choice["pools"] if found.choice is not None else [],
    }


def _told(blocker: Blocker) -> Json:
    return {"code": blocker.error.code, "reason": blocker.error.message, "remedy": blocker.remedy}


def _find_out(request: Request, wanted: Json) -> _Found:
    """Ask everybody; raises NotFound, InvalidVolume for a twin, InvalidHost for what is no host."""
    place = _place(wanted)

    def check(session: Session) -> tuple[Volume, list[Blocker], list[Blocker], str | None]:
        volume = guard.usable(request, session, wanted["volume_id"])
        against = blockers.of_place(request, session, volume, place)
        reader = blockers.reader(request, session, volume)
        return volume, against, blockers.of_volume(request, session, volume), reader

    volume, of_place, of_volume, reader = request.read(check)
    named = str(place) if place is not None else None
    order = volume_actions.ordered(request, volume, named, wanted) | volume_actions.plan_in_use(volume)
    choice, no_pool = _choose(request, volume, named, bool(of_place))
    source, no_answer = _ask_source(request, volume, reader, choice)
    return _Found(volume, place, order, [*of_place, *of_volume, *no_pool, *no_answer], choice, source)


def _choose(request: Request, volume: Volume, host: str | None, told: bool) -> tuple[Json | None, list[Blocker]]:
    """Let the scheduler choose; raises ServiceUnavailable, as nothing could be said then."""
    if volume.host is None:
        return None, []
    choice = request.backing.scheduler.plan(request.context, volume.id, host)
    if choice["chosen"] is not None or (told and set(choice["refused_by"]) <= _TOLD_BEFORE):
        return choice, []
    return choice, [Blocker(errors.NoValidBackend(reason=choice["reason"]), choice["remedy"])]


def _ask_source(
    request: Request, volume: Volume, reader: str | None, choice: Json | None
) -> tuple[Json | None, list[Blocker]]:
    """Ask the service that would do the work what the volume occupies, and whether its backend could do it."""
    if reader is None or volume.host is None:
        return None, []
    location = choice["location"] if choice is not None else None
    try:
        return request.backing.volume.can_assist(request.context, reader, volume.id, location), []
    except errors.MigratorError as error:
        return None, [Blocker(error, f"see that volume service {reader} answers and can read the volume; read its log")]


# --- which plan ------------------------------------------------------------------------------------------------------


def _plans(found: _Found) -> list[Json]:
    """Every plan that there is: whether it would be run, and why, or why not."""
    reasons = _reasons(found)
    chosen = next((plan for plan, (taken, _) in reasons.items() if taken), None)
    return [{"plan": plan, "chosen": plan == chosen, "reason": reason} for plan, (_, reason) in reasons.items()]


def _reasons(found: _Found) -> dict[str, tuple[bool, str]]:
    first = found.order["plan"]
    if first == "attached":
        other = (False, "the volume is in use: only the compute service knows when its server can go over")
        return {"attached": (True, "the volume is in use"), "assisted": other, "host_copy": other}
    attached = (False, "the volume is not in use")
    if first == "host_copy":
        asked = "force_host_copy is asked for"
        return {"attached": attached, "assisted": (False, asked), "host_copy": (True, asked)}
    if found.source is None or found.source["assists"] is None:
        why = "it is not known where to the volume would go" if found.destination is None else "the source was silent"
        return {"attached": attached, "assisted": (False, why), "host_copy": (False, why)}
    assists, answer = bool(found.source["assists"]), str(found.source["reason"])
    copy = "follows only where the backend turns out to be unable" if assists else f"not assisted: {answer}"
    return {"attached": attached, "assisted": (assists, answer), "host_copy": (not assists, copy)}


# --- how much, how long ----------------------------------------------------------------------------------------------


def _expected(request: Request, found: _Found, chosen: str | None) -> Json:
    """Bytes and seconds; null what is not known."""
    allocated = found.source["allocated"] if found.source is not None else None
    total = found.volume.size * 1024**3
    moved = {"assisted": 0, "host_copy": allocated, "attached": total, None: None}
    return {
        "bytes_total": total,
        "bytes_allocated": allocated,
        "bytes_to_copy": moved[chosen],
        **_times(request, found, chosen, allocated),
    }


def _times(request: Request, found: _Found, chosen: str | None, data: int | None) -> Json:
    nothing: Json = {"seconds_expected": None, "copy_seconds": None, "verify_seconds": None, "measured": None}
    if chosen == "assisted":
        return nothing | {"unmeasured": "the backend moves the volume itself, at a rate of its own"}
    if chosen == "attached":
        return nothing | {"unmeasured": "the compute service copies, at a rate of its own"}
    if data is None or found.destination is None or found.volume.host is None:
        return nothing | {"unmeasured": "it is not known what would be copied where"}
    ends = BackendName.parse(found.volume.host), BackendName.parse(found.destination)
    known = request.read(lambda session: measured.rates(session, *ends))
    if known is None:
        return nothing | {"unmeasured": "no migration between these backends, or of one of them, has ended yet"}
    return _estimate(known, data, found.order)


def _estimate(known: Measured, data: int, order: dict[str, Any]) -> Json:
    """The time that ``data`` bytes take at the rates measured, or at the lower one that is asked for."""
    limit = order["bytes_per_second"]

    def seconds(rate: float | None) -> float | None:
        return None if rate is None else data / (min(rate, limit) if limit else rate)

    copying = seconds(known.copy_rate)
    comparing = seconds(known.verify_rate) if order["verify"] == "readback" else 0.0
    return {
        "seconds_expected": round((copying or 0.0) + (comparing or 0.0), 3),
        "copy_seconds": None if copying is None else round(copying, 3),
        "verify_seconds": None if comparing is None else round(comparing, 3),
        "measured": {
            "of": known.of,
            "migrations": known.migrations,
            "copy_bytes_per_second": round(known.copy_rate),
            "verify_bytes_per_second": None if known.verify_rate is None else round(known.verify_rate),
        },
        "unmeasured": None,
    }
