"""``python -m migrator.cli``: the command line from a plain checkout."""

import sys

from migrator.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
