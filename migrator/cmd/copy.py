"""migrator-copy: the copy engine alone, for files, block devices and NBD exports.

It needs no configuration, no database and no other service.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from migrator import __version__
from migrator.volume.control import Control, Stopped
from migrator.volume.copy import CopyOptions
from migrator.volume.endpoints import CopyError, Different, ReadFailed, WrongSize
from migrator.volume.job import IO_TIMEOUT_SECONDS, Performer
from migrator.volume.places import Place, Refused, destination_at, locked, open_place, source_at
from migrator.volume.statefile import StateError, StateFile

SUCCESS, FAILED, USAGE, IO_ERROR, MISMATCH, INTERRUPTED = 0, 1, 2, 3, 4, 130
EXIT_CODES = {
    SUCCESS: "the destination equals the source, as far as --verify says",
    FAILED: "an error that nobody foresaw",
    USAGE: "the command cannot be done as it was given; nothing was written",
    IO_ERROR: "an end could not be read or written, was full, or changed its size",
    MISMATCH: "what was read back is not what was copied",
    INTERRUPTED: "stopped by a signal; with --resume, the same command goes on",
}
#: The first class that fits decides.
_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (Refused, USAGE),
    (StateError, USAGE),
    (Different, MISMATCH),
    (CopyError, IO_ERROR),
    (OSError, IO_ERROR),
    (Stopped, INTERRUPTED),
)

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_BAR = 30
#: Seconds between two lines about progress where there is no terminal.
LINE_SECONDS = 10.0


# --- the command line ------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="migrator-copy",
        description="Copy a volume: a file, a block device or an NBD export (nbd://, nbds://, nbd+unix://).",
        epilog="Exit codes: " + "; ".join(f"{code} {text}" for code, text in EXIT_CODES.items()) + ".",
    )
    made.add_argument("source", help="what is copied; it must not change meanwhile")
    made.add_argument("destination", help="a file (created if missing), a block device or an NBD export")
    made.add_argument(
        "--verify",
        choices=("readback", "inline", "none"),
        default="readback",
        help="readback: read the destination again, past every cache, and compare (default); inline: only make a "
        "checksum of what passes by; none: neither",
    )
    made.add_argument("--rate", type=size, metavar="BYTES", help="bytes per second at most, with K, M, G or T: 100M")
    made.add_argument("--resume", type=Path, metavar="STATEFILE", help="keep there what is copied, and go on with it")
    made.add_argument("--checksum", action="store_true", help="print the checksum of the volume")
    made.add_argument("--json", action="store_true", help="print every event as a line of JSON")
    made.add_argument("--quiet", action="store_true", help="show no progress")
    made.add_argument(
        "--destination-is-zero", action="store_true", help="believe that the destination reads as zeros everywhere"
    )
    _add_tuning(made)
    made.add_argument("--version", action="version", version=__version__)
    return made


def _add_tuning(made: argparse.ArgumentParser) -> None:
    made.add_argument("--checkpoint-seconds", type=seconds, default=2.0, metavar="SECONDS", help="default: 2")
    made.add_argument(
        "--io-timeout",
        type=seconds,
        default=IO_TIMEOUT_SECONDS,
        metavar="SECONDS",
        help=f"report a request as stalled after this time (default: {IO_TIMEOUT_SECONDS:g})",
    )
    made.add_argument("--threads", type=int, help="requests under way; default: found by measurement")
    made.add_argument("--block", type=size, metavar="BYTES", help="bytes of a request; default: found by measurement")


def size(text: str) -> int:
    """Understand a number of bytes with K, M, G or T behind it (powers of 1024)."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    value = int(float(found[1]) * _UNITS[found[2].upper()]) if found else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of bytes, such as 65536 or 100M")
    return value


def seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError
    return value


# --- what is shown ---------------------------------------------------------------------------------------------------


class Display:
    """Shows events: as a bar on a terminal, else as lines now and then, or all of them as JSON."""

    def __init__(self, arguments: argparse.Namespace, out: TextIO, err: TextIO) -> None:
        self._json: bool = arguments.json
        self._shows = not arguments.quiet and not arguments.json
        self._out, self._err = out, err
        self._bar = err.isatty()
        self._next = time.monotonic() + LINE_SECONDS
        self._width = 0

    def event(self, doing: str, event: dict[str, Any]) -> None:
        if self._json:
            self._line(self._out, json.dumps({"doing": doing, **event}))
        elif self._shows and self._bar:
            text = f"{doing:<9} {bar(event)}"
            self._err.write("\r" + text.ljust(self._width))
            self._err.flush()
            self._width = len(text)
        elif self._shows and time.monotonic() >= self._next:
            self._next = time.monotonic() + LINE_SECONDS
            self._line(self._err, f"{doing}: {told(event)}")

    def end(self, result: dict[str, Any], text: str) -> None:
        """Show how it ended; ``text`` is for people."""
        self.clear()
        if self._json:
            self._line(self._out, json.dumps({"event": "end", **result}))
        if text:
            self._line(self._err if self._json or result["exit_code"] else self._out, text)

    def clear(self) -> None:
        """Take the bar away."""
        if self._width:
            self._err.write("\r" + " " * self._width + "\r")
            self._err.flush()
            self._width = 0

    @staticmethod
    def _line(stream: TextIO, text: str) -> None:
        with contextlib.suppress(BrokenPipeError):
            print(text, file=stream, flush=True)


def bar(event: dict[str, Any]) -> str:
    total = event["bytes_total"]
    share = event["bytes_done"] / total if total else 1.0
    return f"[{'#' * int(share * _BAR):<{_BAR}}] {told(event)}"


def told(event: dict[str, Any]) -> str:
    """Say how far a job is."""
    done, total, rate = event["bytes_done"], event["bytes_total"], event["rate"]
    text = f"{100 * done // total if total else 100:3} %  {gib(done)} of {gib(total)}  {rate / 1e6:.0f} MB/s"
    if event.get("stalled_seconds"):
        return f"{text}  no answer of a device for {event['stalled_seconds']:.0f} s"
    if rate > 0 and done < total:
        minutes, rest = divmod(int((total - done) / rate), 60)
        text += f"  {minutes}:{rest:02} left"
    return text


def gib(count: int) -> str:
    return f"{count / (1 << 30):.2f} GiB"


# --- the job ---------------------------------------------------------------------------------------------------------


class Job:
    """One run of the command: copy, then verification."""

    def __init__(self, arguments: argparse.Namespace, control: Control, display: Display) -> None:
        self._arguments = arguments
        self._control = control
        self._display = display
        self._performer = Performer(open_place)
        self._state: StateFile | None = None

    def run(self) -> dict[str, Any]:
        """Do it and return what came of it; raises Refused, StateError, CopyError, OSError, Stopped."""
        arguments = self._arguments
        self._check_options()
        source = source_at(arguments.source)
        destination = destination_at(arguments.destination, source, arguments.destination_is_zero)
        with locked(destination):
            try:
                done = self._load(source, destination)
            except BaseException:
                destination.forget()
                raise
            return self._do(source, destination, done)

    def _do(self, source: Place, destination: Place, done: list[list[int]]) -> dict[str, Any]:
        arguments = self._arguments
        copied = self._perform("copying", self._command("copy", source, destination, done))
        result = {"bytes_copied": copied["bytes_written"], "seconds": copied["seconds"], "verify": arguments.verify}
        checksum = copied["checksum"]
        if arguments.verify == "readback":
            began = time.monotonic()
            checksum = self._perform("verifying", self._command("verify", source, destination, []))["checksum"]
            result["verify_seconds"] = time.monotonic() - began
        if self._state is not None:
            self._state.remove()
        return {**result, "bytes_total": source.size, "checksum": checksum}

    def _check_options(self) -> None:
        try:
            CopyOptions(self._arguments.threads, self._arguments.block)
        except ValueError as error:
            raise Refused(f"too much or too little: {error}") from error

    def _load(self, source: Place, destination: Place) -> list[list[int]]:
        if self._arguments.resume is None:
            return []
        ends = {"source": source.identity, "destination": destination.identity}
        self._state = StateFile(self._arguments.resume.absolute(), ends, bool(destination.connection["is_zero"]))
        done = self._state.load()
        if done and destination.is_new:
            raise StateError(f"{self._state.path} is of another copy: its destination is gone")
        destination.connection["is_zero"] = self._state.is_zero
        self._state.save(done)  # before the first byte is written, so that a crash does not hide what was empty
        return done

    def _command(self, do: str, source: Place, destination: Place, done: list[list[int]]) -> dict[str, Any]:
        arguments = self._arguments
        options = {
            "checkpoint_seconds": arguments.checkpoint_seconds,
            "hash": arguments.verify != "none" or arguments.checksum,
            "io_timeout_seconds": arguments.io_timeout,
            "threads": arguments.threads,
            "block": arguments.block,
        }
        ends = {"source": source.connection, "destination": destination.connection}
        return {"do": do, "job": 1, "copied": 1, **ends, "done": done, "options": options}

    def _perform(self, doing: str, command: dict[str, Any]) -> dict[str, Any]:
        def report(event: dict[str, Any]) -> None:
            if self._state is not None and event["event"] == "checkpoint":
                self._state.save(event["ranges"])
            self._display.event(doing, event)

        return self._performer.perform(command, self._control, report)


@contextlib.contextmanager
def signals(control: Control, names: Sequence[str] = ("SIGINT", "SIGTERM", "SIGHUP")) -> Iterator[None]:
    """Let a signal stop the job after a last checkpoint, and a second one end the process at once."""

    def stop(number: int, frame: object) -> None:
        if control.reason is not None:
            os._exit(INTERRUPTED)  # a device that hangs would keep us here for ever
        control.stop("pause")

    before: dict[int, Any] = {}
    for name in names:
        before[signal.Signals[name]] = signal.signal(signal.Signals[name], stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit code."""
    arguments = parser().parse_args(argv)
    control = Control(arguments.rate)
    display = Display(arguments, sys.stdout, sys.stderr)
    with signals(control):
        return outcome(Job(arguments, control, display).run, arguments, display)


def outcome(run: Callable[[], dict[str, Any]], arguments: argparse.Namespace, display: Display) -> int:
    """Run the job, show how it ended, and return the exit code that says so."""
    try:
        result = run()
    except Exception as error:
        code = next((code for kind, code in _CODES if isinstance(error, kind)), FAILED)
        details = error.as_dict() if isinstance(error, CopyError) else {"kind": type(error).__name__}
        text = _explained(error, arguments)
        display.end({"exit_code": code, "error": {**details, "message": text}}, f"migrator-copy: {text}")
        return code
    speed = result["bytes_total"] / max(result["seconds"], 0.001) / 1e6
    text = f"{gib(result['bytes_total'])} copied in {result['seconds']:.2f} s ({speed:.0f} MB/s)"
    if "verify_seconds" in result:
        text += f", read back in {result['verify_seconds']:.2f} s"
    if arguments.checksum:
        text += f"\n{result['checksum'] or 'no checksum: a part was copied by an earlier run'}"
    display.end({"exit_code": SUCCESS, **result}, "" if arguments.json or _is_silent(arguments) else text)
    return SUCCESS


def _is_silent(arguments: argparse.Namespace) -> bool:
    return bool(arguments.quiet and not arguments.checksum)


def _explained(error: Exception, arguments: argparse.Namespace) -> str:
    if isinstance(error, Stopped):
        return "stopped; " + (
            f"what is copied is in {arguments.resume}, the same command goes on"
            if arguments.resume
            else "what was copied is not recorded (--resume)"
        )
    if isinstance(error, Different):
        return f"the destination differs from the source at offset {error.offset}"
    if isinstance(error, WrongSize):
        return f"{error.path} has {error.got} bytes, wanted {error.wanted}"
    if isinstance(error, CopyError):
        doing = "reading" if isinstance(error, ReadFailed) else "writing"
        return f"{doing} {error.path} failed at offset {error.offset}: {error.reason}"
    return str(error) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
