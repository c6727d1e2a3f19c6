"""Drivers: how migrator deals with each kind of storage; README.rst is the contract in prose, base in types."""

from __future__ import annotations

import importlib.metadata

from stevedore.driver import DriverManager
from stevedore.exception import MultipleMatches, NoMatches

from migrator.drivers.base import VolumeDriver
from migrator.errors import ConfigError

NAMESPACE = "migrator.drivers"


def load(name: str) -> type[VolumeDriver]:
    """Return the class of the driver ``name``, an entry point of ``migrator.drivers``; raises ConfigError."""
    try:
        driver: object = DriverManager(NAMESPACE, name, on_missing_entrypoints_callback=None).driver
    except NoMatches:
        raise _unusable(f"there is no driver {name!r}; {_installed()}") from None
    except MultipleMatches as error:
        raise _unusable(str(error)) from error
    except ImportError as error:
        raise _unusable(f"the driver {name!r} needs something that is not installed: {error}") from error
    if not (isinstance(driver, type) and issubclass(driver, VolumeDriver)):
        raise _unusable(f"the entry point {name!r} of {NAMESPACE} is not a driver: {driver!r}")
    return driver


def _unusable(reason: str) -> ConfigError:
    return ConfigError(option="volume_driver", reason=reason)


def _installed() -> str:
    names = sorted({point.name for point in importlib.metadata.entry_points(group=NAMESPACE)})
    if not names:
        return f"no package installed here has entry points in {NAMESPACE}, migrator itself must be installed"
    return f"installed are {', '.join(names)}"
