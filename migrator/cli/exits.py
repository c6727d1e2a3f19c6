"""Exit codes: what a script may rely on, one table."""

from __future__ import annotations

from migrator import errors

SUCCESS = 0
ERROR = 1
REFUSED = 2
FAILED = 3
CANCELLED = 4
INTERRUPTED = 130

#: The first class that fits decides; 0 is said only of what really succeeded.
EXIT_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (errors.MigrationCancelled, CANCELLED),
    (errors.MigrationFailed, FAILED),
    (errors.VolumeFailed, FAILED),
    (errors.ApiRefused, REFUSED),
    (errors.BadRequest, REFUSED),
    (errors.NotFound, REFUSED),
    (KeyboardInterrupt, INTERRUPTED),
    (BaseException, ERROR),
)


def exit_code(error: BaseException) -> int:
    """Return the exit code that says what kind of failure ``error`` is."""
    return next(code for kind, code in EXIT_CODES if isinstance(error, kind))
