"""``migrator migrate`` as an operator and as a script see it: usage, request, progress, and the truth in exit codes."""

from __future__ import annotations

import os
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from migrator.cli import exits, migrate, progress
from migrator.cli.app import COMMANDS
from tests.unit.cli_stand_in import (
    DESTINATION,
    ENDED,
    MIGRATION_ID,
    MOVED,
    OTHER_ID,
    VOLUME_ID,
    Answer,
    environment,
    fault,
    migration,
    run,
    serving,
    volume,
    wait_for,
)

ACTION = f"/volumes/{VOLUME_ID}/action"
READ = f"GET /migrations/{MIGRATION_ID}"
COMMAND = [sys.executable, "-m", "migrator.cli"]
USAGE = """usage: migrator migrate [--force-host-copy [<True|False>]]
                        [--lock-volume [<True|False>]]
                        <volume> <host>
"""


def answers(*states: dict[str, Any], **more: Answer | list[Answer]) -> dict[str, Answer | list[Answer]]:
    """Return a service with one volume, whose migration goes through ``states``."""
    return {
        "GET /volumes/detail": (200, {"volumes": [volume()]}),
        f"GET /volumes/{VOLUME_ID}": (200, {"volume": volume()}),
        f"POST {ACTION}": (202, {}),
        "GET /migrations": (200, {"migrations": [migration()]}),
        READ: [(200, {"migration": state}) for state in states] or fault(404, "no migration", "itemNotFound"),
        **more,
    }


def ended(status: str, **changes: Any) -> dict[str, Any]:
    back = {"status": status, "step": "pick_destination", "direction": "back"}
    return migration(**{**ENDED, **back, **changes})


# --- usage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("argv", [("help", "migrate"), ("migrate", "--help"), ("migrate", "vol1", "-h")])
def test_the_usage_is_the_one_operators_know(argv: tuple[str, ...]) -> None:
    result = run(*argv)
    assert result.code == 0
    assert result.out.startswith(f"{USAGE}\nMigrates volume to a new host.\n")
    for words in ("Name or ID of volume to migrate.", "in the form host@backend-name#pool", "--wait", "exit codes: 0"):
        assert words in result.out


def test_the_usage_holds_on_a_narrow_terminal_and_in_a_process_of_its_own() -> None:
    done = subprocess.run(
        [*COMMAND, "help", "migrate"], env=environment(COLUMNS="40"), capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(USAGE)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_table_can_be_loaded_and_says_what_it_does(command: str) -> None:
    result = run("help", command)
    assert result.code == 0
    assert result.out.startswith(f"usage: migrator {command} ")
    assert result.err == ""


def test_without_a_command_all_commands_are_listed() -> None:
    result = run()
    assert result.code == 0
    assert all(command in result.out for command in COMMANDS)


# --- the request -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "force", "lock"),
    [
        ("vol1 H", False, False),
        ("--force-host-copy vol1 H", True, False),
        ("vol1 H --force-host-copy", True, False),
        ("vol1 --lock-volume H", False, True),
        ("--force-host-copy --lock-volume vol1 H", True, True),
        ("--force-host-copy True --lock-volume False vol1 H", True, False),
        ("--force-host-copy=no vol1 H --lock-volume ON", False, True),
        ("--force-host-copy 0 --lock-volume 1 vol1 H", False, True),
        ("--lock-volume yes --wait vol1 H", False, True),
    ],
)
def test_flags_take_a_truth_or_stand_alone(arguments: str, force: bool, lock: bool) -> None:
    with serving(answers(MOVED)) as service:
        result = service.run("migrate", *arguments.replace("H", DESTINATION).split())
    assert (result.code, result.err) == (0, "")
    body = {"host": DESTINATION, "force_host_copy": force, "lock_volume": lock}
    assert service.sent("POST", ACTION) == [{"os-migrate_volume": body}]


@pytest.mark.parametrize(
    "words", ["--lock-volume maybe vol1 H", "vol1 H --force-host-copy maybe", "--lock-volume=2 v H"]
)
def test_a_flag_that_is_neither_true_nor_false_is_one_line_and_no_request(words: str) -> None:
    with serving(answers()) as service:
        result = service.run("migrate", *words.split())
    assert (result.code, result.out, service.requests) == (2, "", [])
    assert re.fullmatch(r"migrator migrate: .* is neither true nor false; see .*\n", result.err)


def test_what_is_accepted_is_said_on_stdout_and_asked_with_token_and_version() -> None:
    with serving(answers()) as service:
        result = service.run("migrate", "vol1", DESTINATION)
    assert (result.code, result.err) == (0, "")
    assert result.out == "Request to migrate volume vol1 has been accepted.\n"
    lookup, request = service.requests
    assert lookup.query["name"] == ["vol1"]
    assert request.headers["x-auth-token"] == "admin:admin"
    assert request.headers["openstack-api-version"] == "volume 3.71"


def test_an_id_is_not_looked_up_by_name() -> None:
    with serving(answers()) as service:
        assert service.run("migrate", VOLUME_ID, DESTINATION).code == 0
    assert [request.path.rsplit("/", 1)[1] for request in service.requests] == [VOLUME_ID, "action"]


# --- the truth in exit codes -----------------------------------------------------------------------------------------


def test_an_ambiguous_name_names_the_ids_and_moves_nothing() -> None:
    twins = {"volumes": [volume(), volume(id=OTHER_ID)]}
    with serving(answers(**{"GET /volumes/detail": (200, twins)})) as service:
        result = service.run("migrate", "vol1", DESTINATION)
    assert (result.code, result.out, service.sent("POST", ACTION)) == (2, "", [])
    assert result.err == f"2 volumes are named 'vol1': {VOLUME_ID}, {OTHER_ID}; give the id of one of them.\n"


def test_a_volume_that_does_not_exist_is_refused() -> None:
    with serving(answers()) as service:
        result = service.run("migrate", "vol2", DESTINATION)
    assert (result.code, result.out, result.err) == (2, "", "Volume 'vol2' could not be found.\n")


@pytest.mark.parametrize(
    ("status", "name", "code"),
    [
        (400, "badRequest", exits.REFUSED),
        (403, "forbidden", exits.REFUSED),
        (404, "itemNotFound", exits.REFUSED),
        (409, "conflictingRequest", exits.REFUSED),
        (500, "computeFault", exits.ERROR),
        (503, "serviceUnavailable", exits.ERROR),
    ],
)
@pytest.mark.parametrize("wait", [(), ("--wait",)])
def test_a_refused_request_is_never_a_success(status: int, name: str, code: int, wait: tuple[str, ...]) -> None:
    """field.md pain 14: python-cinderclient prints that the migration failed, and exits 0."""
    refusal = fault(status, "Volume status must be available or in-use,\nbut is\n 'error'.", name)
    with serving(answers(**{f"POST {ACTION}": refusal})) as service:
        result = service.run("migrate", "vol1", DESTINATION, *wait)
    assert (result.code, result.out) == (code, "")
    assert result.err == "Volume status must be available or in-use, but is 'error'.\n"


def test_an_answer_from_something_else_is_an_error_in_one_line() -> None:
    with serving(answers(**{f"POST {ACTION}": (502, "<html>\nBad\n</html>")})) as service:
        result = service.run("migrate", "vol1", DESTINATION)
    assert (result.code, result.out) == (1, "")
    assert result.err == f"{service.url}/v3/admin{ACTION} answered 502 Bad Gateway\n"


def test_a_service_that_is_not_there_is_named_in_one_line() -> None:
    with socket.socket() as taken:  # bound, never listening: nobody else can serve on it meanwhile
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        result = run("migrate", "vol1", DESTINATION, MIGRATOR_URL=url)
    assert (result.code, result.out) == (1, "")
    assert result.err == f"cannot reach {url}: connection refused; is migrator-all running?\n"


def test_a_service_that_does_not_answer_is_given_up_after_the_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        result = run("--timeout", "0.2", "list", MIGRATOR_URL=url)
    assert (result.code, result.out, result.err) == (1, "", f"cannot reach {url}: timed out\n")


def test_debug_shows_the_traceback_and_keeps_the_exit_code() -> None:
    with serving(answers(**{f"POST {ACTION}": fault(400, "no")})) as service:
        result = service.run("--debug", "migrate", "vol1", DESTINATION)
    assert result.code == 2
    assert "Traceback" in result.err


FAILURE = {"step": "copy_data", "code": "NoSpace", "message": "No space left on b@file2#pool2:\nneeds 1 GiB"}


@pytest.mark.parametrize(
    ("end", "code", "reason"),
    [
        (MOVED, 0, ""),
        (
            ended("error", error=FAILURE),
            3,
            "Migration of volume vol1 failed and was taken back at copy_data: "
            "No space left on b@file2#pool2: needs 1 GiB\n",
        ),
        (
            ended("stuck", step="switch_volume", steps=[]),
            3,
            "Migration of volume vol1 is stuck, with the data safe, at switch_volume: no reason was recorded\n",
        ),
        (ended("cancelled"), 4, "Migration of volume vol1 was cancelled at create_destination; nothing was moved.\n"),
    ],
)
@pytest.mark.parametrize("follow", ["migrate", "migration-watch"])
def test_waiting_ends_as_the_migration_ends(end: dict[str, Any], code: int, reason: str, follow: str) -> None:
    """field.md pain 14: the exit code tells the end apart, and the reason is one line of stderr."""
    with serving(answers(migration(), end)) as service:
        if follow == "migrate":
            result = service.run("migrate", "vol1", DESTINATION, "--wait")
            asked = [request.query for request in service.requests if request.path.endswith("/migrations")]
            assert asked == [{"volume_id": [VOLUME_ID], "limit": ["1"]}]
        else:
            result = service.run("migration-watch", MIGRATION_ID)
            reason = reason.replace("vol1", VOLUME_ID)
    assert (result.code, result.err) == (code, reason)
    assert ("is now at" in result.out) == (code == 0)


def test_every_end_of_a_migration_has_an_exit_code() -> None:
    from migrator.volume.states import End

    assert set(migrate.ENDS) == {end.value for end in End}


def test_a_request_accepted_without_a_migration_is_not_a_success() -> None:
    with serving(answers(**{"GET /migrations": (200, {"migrations": []})})) as service:
        result = service.run("migrate", "vol1", DESTINATION, "--wait")
    assert result.code == 1
    assert result.err == f"the service accepted, but shows no migration of volume {VOLUME_ID}\n"


def test_a_service_that_is_restarted_does_not_end_the_waiting() -> None:
    busy: list[Answer] = [fault(503, "starting"), (200, {"migration": migration()}), (200, {"migration": MOVED})]
    with serving(answers(**{READ: busy})) as service:
        result = service.run("migrate", "vol1", DESTINATION, "--wait")
    assert (result.code, result.err) == (0, "")


def test_a_service_that_stays_away_ends_the_waiting_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrate, "PATIENCE_SECONDS", 0.0)
    with serving(answers(**{READ: fault(503, "gone for good")})) as service:
        result = service.run("migrate", "vol1", DESTINATION, "--wait")
    assert (result.code, result.err) == (1, "gone for good\n")


def test_an_interrupt_ends_the_watching_alone_and_says_so() -> None:
    with serving(answers(migration())) as service:
        argv = [*COMMAND, "migrate", "vol1", DESTINATION, "--wait"]
        watching = subprocess.Popen(
            argv, env=environment(MIGRATOR_URL=service.url), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        wait_for(lambda: len(service.requests) > 4)
        watching.send_signal(signal.SIGINT)
        _, err = watching.communicate(timeout=20)
    assert watching.returncode == 130
    assert err == f"The migration goes on; to follow it: migrator migration-watch {MIGRATION_ID}\n"


LOSING = """
import signal, sys
from migrator.cli import client
from migrator.cli.app import main

class Interrupted:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

def get(self, path, **query):
    if path.startswith("migrations/"):
        Interrupted()
    return real(self, path, **query)

real, client.Client.get = client.Client.get, get
sys.exit(main(sys.argv[1:]))
"""


def test_an_interrupt_in_a_destructor_is_not_lost() -> None:
    """Python drops what is raised there; the watching went on."""
    with serving(answers(migration())) as service:
        argv = [sys.executable, "-c", LOSING, "migrate", "vol1", DESTINATION, "--wait"]
        done = subprocess.run(
            argv, env=environment(MIGRATOR_URL=service.url), capture_output=True, text=True, timeout=60, check=False
        )
    assert done.returncode == 130
    assert "Exception ignored in" in done.stderr
    assert done.stderr.endswith(f"The migration goes on; to follow it: migrator migration-watch {MIGRATION_ID}\n")


# --- progress --------------------------------------------------------------------------------------------------------


def copying(share: float, **changes: Any) -> dict[str, Any]:
    return migration(bytes_done=int((1 << 30) * share), **changes)


def test_off_a_terminal_a_line_tells_each_step_and_each_tenth() -> None:
    begun = migration(status="queued", step="pick_destination", bytes_done=0, eta_seconds=None, rate_bytes_per_second=0)
    states = [begun, begun, copying(0.125), copying(0.15), copying(0.4321, eta_seconds=125), MOVED]
    with serving(answers(*states)) as service:
        result = service.run("migrate", "vol1", DESTINATION, "--wait")
    assert result.out.splitlines() == [
        "Request to migrate volume vol1 has been accepted.",
        "pick_destination (queued), 0 %, 0 B of 1.0 GiB",
        "copy_data, 12 %, 128.0 MiB of 1.0 GiB, 100.0 MiB/s, ETA 5.1 s",
        "copy_data, 43 %, 442.5 MiB of 1.0 GiB, 100.0 MiB/s, ETA 2:05 min",
        "delete_source, 100 %, 1.0 GiB of 1.0 GiB",
        f"Volume vol1 is now at {DESTINATION} (1.0 GiB in 3.5 s).",
    ]


def test_quiet_tells_the_end_alone() -> None:
    with serving(answers(copying(0.2), MOVED)) as service:
        result = service.run("-q", "migration-watch", MIGRATION_ID)
    assert result.out == f"Volume {VOLUME_ID} is now at {DESTINATION} (1.0 GiB in 3.5 s).\n"


def on_a_terminal(argv: list[str], env: dict[str, str]) -> tuple[int, str, str]:
    """Return exit code, stdout, and what a terminal at stderr was sent."""
    outside, inside = pty.openpty()
    sent = bytearray()

    def read() -> None:
        # A terminal whose last process went away gives an error instead of an end.
        try:
            while piece := os.read(outside, 4096):
                sent.extend(piece)
        except OSError:
            pass

    reader = threading.Thread(target=read)
    with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=inside, text=True) as process:
        os.close(inside)
        reader.start()
        out, _ = process.communicate(timeout=30)
    reader.join()
    os.close(outside)
    return process.returncode, out, sent.decode()


@pytest.mark.parametrize(("end", "code"), [(MOVED, 0), (ended("error", error=FAILURE), 3)])
def test_on_a_terminal_one_line_is_rewritten_and_taken_away(end: dict[str, Any], code: int) -> None:
    with serving(answers(copying(0.25), copying(0.5), end)) as service:
        argv = [*COMMAND, "migrate", "vol1", DESTINATION, "--wait"]
        result, out, shown = on_a_terminal(argv, environment(MIGRATOR_URL=service.url))
    assert result == code
    pictures = shown.split("\r")
    assert pictures[1].startswith("[######------------------]  25 %  256.0 MiB of 1.0 GiB  100.0 MiB/s  ETA 5.1 s")
    assert pictures[2].startswith("[############------------]  50 %  512.0 MiB of 1.0 GiB")
    before_the_reason = shown.partition("Migration of")[0]
    assert "\n" not in before_the_reason
    assert before_the_reason.endswith("\r\x1b[K")
    assert "copy_data" not in out
    assert ("is now at" in out) == (code == 0)


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_the_bar_never_wraps(width: int) -> None:
    line = progress.bar(copying(0.5), width)
    assert len(line) < width
    assert line.startswith("[####")


@pytest.mark.parametrize("unknown", [{"bytes_total": None}, {"bytes_total": 0}, {"bytes_done": None}])
@pytest.mark.parametrize("show", [progress.Lines, progress.Bar])
def test_progress_says_nothing_that_is_not_known(
    unknown: dict[str, Any], show: Callable[[Any], progress.Progress], capsys: pytest.CaptureFixture[str]
) -> None:
    show(sys.stdout).show(migration(**unknown))
    assert "%" not in capsys.readouterr().out
