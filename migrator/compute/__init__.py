"""Compute services: who has a server's hypervisor change to another volume while the server runs."""

from __future__ import annotations

from stevedore.driver import DriverManager
from stevedore.exception import NoMatches

from migrator.compute.base import Compute
from migrator.conf import Conf
from migrator.errors import ConfigError

NAMESPACE = "migrator.compute"


def load(conf: Conf) -> Compute | None:
    """Return the compute service that ``compute_service`` names (an entry point), None if none; raises ConfigError."""
    name = conf.compute_service
    if not name:
        return None
    try:
        plugin: object = DriverManager(NAMESPACE, name, on_missing_entrypoints_callback=None).driver
    except NoMatches:
        raise ConfigError(option="compute_service", reason=f"there is no compute service {name!r}") from None
    except ImportError as error:
        raise ConfigError(option="compute_service", reason=f"{name!r} needs what is not installed: {error}") from error
    if not (isinstance(plugin, type) and issubclass(plugin, Compute)):
        raise ConfigError(option="compute_service", reason=f"the entry point {name!r} is no compute service")
    return plugin(conf)
