"""The main job, shown: a volume full of data moves to another backend and back, byte for byte the same.

``make demo`` runs this.  It starts migrator-all in a temporary directory and drives it by the command line alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.support.data import GIB, MIB, allocated, sha256, write_pattern
from tests.support.processes import AllInOne

SIZE_GIB = 1
DATA_SHARE = 0.5


class Demo:
    """One service, one volume, and a table of what happened."""

    def __init__(self, directory: Path) -> None:
        self.service = AllInOne(directory)
        self._env = {**os.environ, "MIGRATOR_URL": self.service.url, "PYTHONWARNINGS": "ignore"}
        self._rows: list[tuple[str, str]] = []

    def cli(self, *arguments: str, capture: bool = True) -> str:
        """Run the command line; ends the demo with its exit code when it fails."""
        print(f"$ migrator {' '.join(arguments)}", flush=True)
        command = [sys.executable, "-m", "migrator.cli", *arguments]
        done = subprocess.run(
            command, env=self._env, stdout=subprocess.PIPE if capture else None, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(done.returncode)
        return done.stdout or ""

    def volume_file(self, name: str) -> Path:
        volume = json.loads(self.cli("show", name, "-f", "json"))
        backend, pool = volume["os-vol-host-attr:host"].split("@")[1].split("#")
        return self.service.path(backend, pool, volume["os-vol-mig-status-attr:name_id"] or volume["id"])

    def move(self, name: str, host: str, *options: str) -> None:
        """Migrate under a progress bar and note what came of it."""
        began = time.monotonic()
        self.cli("migrate", "--wait", *options, name, host, capture=False)
        seconds = time.monotonic() - began
        newest = json.loads(self.cli("migration-list", "--volume", name, "--limit", "1", "-f", "json"))[0]
        migration = json.loads(self.cli("migration-show", newest["ID"], "-f", "json"))
        written = sum(step["bytes"] or 0 for step in migration["steps"] if step["step"] == "copy_data")
        self.note(
            f"{migration['plan']} to {host}", f"{migration['status']}, {seconds:.2f} s, {written / MIB:.0f} MiB copied"
        )

    def note(self, what: str, result: str) -> None:
        self._rows.append((what, result))

    def table(self) -> str:
        width = max(len(what) for what, _ in self._rows)
        return "\n".join(f"  {what:<{width}}  {result}" for what, result in self._rows)

    def run(self) -> None:
        self.cli("get-pools", capture=False)
        self.cli("create", "--name", "demo", "--wait", str(SIZE_GIB), capture=False)
        before = self.volume_file("demo")
        write_pattern(before, SIZE_GIB * GIB, seed=1, data_share=DATA_SHARE)
        checksum, size = sha256(before), allocated(before)
        self.note("volume filled", f"{SIZE_GIB} GiB, {size / MIB:.0f} MiB allocated, sha256 {checksum[:16]}…")
        here = f"node@{before.parent.parent.name}#{before.parent.name}"
        there = "node@file2#pool2" if "file1" in here else "node@file1#pool1"
        self.move("demo", there, "--force-host-copy", "True")
        self.compare(checksum, size)
        self.move("demo", here)
        self.compare(checksum, size)

    def compare(self, checksum: str, size: int) -> None:
        """End the demo unless the volume holds the same bytes and no more space than before."""
        now = self.volume_file("demo")
        same, thin = sha256(now) == checksum, allocated(now) <= size * 1.02 + MIB
        self.note("compared", f"checksum {'equal' if same else 'DIFFERENT'}, {allocated(now) / MIB:.0f} MiB allocated")
        if not same or not thin:
            raise SystemExit(f"the volume changed on its way:\n{self.table()}")


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="migrator-demo-") as directory:
        demo = Demo(Path(directory))
        try:
            demo.run()
            print(f"\nWhat happened:\n{demo.table()}")
        finally:
            code = demo.service.process.terminate()
            demo.service.process.end()
        sys.exit(code)


if __name__ == "__main__":
    main()
