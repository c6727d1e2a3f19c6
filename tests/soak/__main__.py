"""``make soak``: exit code 0 if nothing was violated."""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.soak.plants import PLANTS
from tests.soak.soak import Soak


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long to go on (default 10)")
    parser.add_argument("--seed", type=int, help="throw the same dice as an earlier run; the clock stays its own")
    parser.add_argument("--deployment", choices=sorted(PLANTS), default="embedded", help="what to run (embedded)")
    parser.add_argument("--keep", action="store_true", help="leave the directory with logs and volumes after a failure")
    arguments = parser.parse_args(argv)
    seed = random.randrange(2**32) if arguments.seed is None else arguments.seed
    print(f"seed {seed}, {arguments.deployment}, {arguments.minutes:g} minutes", flush=True)
    directory = Path(tempfile.mkdtemp(prefix="migrator-soak-"))
    with PLANTS[arguments.deployment](directory) as plant:
        soak = Soak(plant, seed, lambda line: print(line, flush=True))
        soak.run(arguments.minutes * 60)
    print(soak.tally.table())
    for violation in soak.violations:
        print(f"VIOLATION: {violation}")
    print(f"{len(soak.violations)} violations, seed {seed}")
    if soak.violations and arguments.keep:
        print(f"left: {directory}")
    else:
        shutil.rmtree(directory)
    return 1 if soak.violations else 0


if __name__ == "__main__":
    sys.exit(main())
