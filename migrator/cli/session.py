"""Where the service is and who we are there: a keystoneauth1 session from options, OS_* variables or clouds.yaml.

First that is given: a cloud of clouds.yaml (``--os-cloud``, OS_CLOUD), a way to authenticate (``--os-auth-type``,
``--os-auth-url`` and their variables), or else the service that ``migrator-all`` runs on this machine.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from migrator import errors

if TYPE_CHECKING:
    from keystoneauth1 import plugin
    from keystoneauth1.adapter import Adapter
    from keystoneauth1.loading import Opt
    from keystoneauth1.session import Session

#: Newest microversion whose answers the commands understand.
MICROVERSION = "3.71"
SERVICE_TYPE = "block-storage"
LOCAL_URL = "http://127.0.0.1:8776"
LOCAL_TOKEN = "admin:admin"  # noqa: S105 - believed by a service on loopback alone
#: A request that takes longer than any of ours may; a migration is waited for by many short ones.
TIMEOUT_SECONDS = 60.0

_ENDPOINT_VARIABLES = ("OS_ENDPOINT", "OS_BLOCK_STORAGE_ENDPOINT_OVERRIDE", "OS_VOLUME_ENDPOINT_OVERRIDE")
_CLOUD_ENDPOINTS = ("block_storage_endpoint_override", "volume_endpoint_override", "endpoint_override")
_CLOUD_DIRECTORIES = (Path(), Path("~/.config/openstack"), Path("/etc/openstack"))

Cloud = dict[str, Any]


def register_options(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    """Add the options of session and authentication; those of the auth plugin only when one is asked for.

    Raises BadRequest for a cloud or a plugin that does not exist.
    """
    group = parser.add_argument_group("Connection", "Without any of these: the service on this machine.")
    group.add_argument("--os-cloud", metavar="<name>", default=_env("OS_CLOUD"), help="Entry of clouds.yaml.")
    cloud, auth_type = _wanted(argv)
    group.set_defaults(cloud=cloud)
    if auth_type is not None:
        _register_plugin(parser, argv, auth_type)
    else:
        group.add_argument("--os-auth-type", metavar="<name>", help="Way to authenticate, such as password.")
        group.add_argument("--os-auth-url", metavar="<url>", help="Identity service.")
    if "--os-endpoint" not in parser._option_string_actions:  # some plugins declare it, meaning the same
        group.add_argument("--os-endpoint", metavar="<url>", help="Service address, instead of the catalog's.")
    for flag, variable, text in (
        ("--os-region-name", "OS_REGION_NAME", "Region of the catalog."),
        ("--os-interface", "OS_INTERFACE", "public (default), internal or admin address of the catalog."),
        ("--os-cacert", "OS_CACERT", "Certificate authorities to trust."),
        ("--os-cert", "OS_CERT", "Client certificate."),
        ("--os-key", "OS_KEY", "Key of the client certificate."),
    ):
        group.add_argument(flag, metavar="<value>", default=_env(variable), help=text)
    group.add_argument("--insecure", action="store_true", help="Do not check the service's certificate.")
    group.add_argument("--timeout", type=float, default=TIMEOUT_SECONDS, metavar="<seconds>", help="Per request.")


def connect(options: argparse.Namespace) -> Adapter:
    """Return the block-storage API, ready for requests; nothing is sent yet."""
    from keystoneauth1 import exceptions
    from keystoneauth1.adapter import Adapter

    try:
        auth, endpoint = _auth(options)
    except exceptions.ClientException as error:
        raise errors.BadRequest(reason=str(error)) from error
    cloud = options.cloud
    return Adapter(
        _session(options, cloud),
        auth=auth,
        service_type=SERVICE_TYPE,
        endpoint_override=endpoint,
        interface=options.os_interface or cloud.get("interface") or "public",
        region_name=options.os_region_name or cloud.get("region_name"),
        default_microversion=MICROVERSION,
        user_agent="migrator",
        min_version=None if endpoint else "3",
        max_version=None if endpoint else "3.latest",
    )


def _session(options: argparse.Namespace, cloud: Cloud) -> Session:
    from keystoneauth1.session import Session

    cert, key = options.os_cert or cloud.get("cert"), options.os_key or cloud.get("key")
    cacert = options.os_cacert or cloud.get("cacert")
    insecure = options.insecure or cloud.get("verify") is False
    return Session(
        verify=False if insecure else cacert or True,
        cert=(cert, key) if cert and key else cert,
        timeout=options.timeout,
    )


def _auth(options: argparse.Namespace) -> tuple[plugin.BaseAuthPlugin, str | None]:
    """Return who we are, and the service's address unless the catalog shall say it."""
    cloud: Cloud = options.cloud
    endpoint = options.os_endpoint or _env(*_ENDPOINT_VARIABLES)
    endpoint = endpoint or next((cloud[key] for key in _CLOUD_ENDPOINTS if cloud.get(key)), None)
    auth_type = options.os_auth_type
    if auth_type is None:
        return _local(endpoint)
    from keystoneauth1 import loading

    loader: loading.BaseLoader[plugin.BaseAuthPlugin] = loading.get_plugin_loader(auth_type)

    def value(option: Opt) -> Any:
        names = [option.dest, *(old.dest for old in option.deprecated)]
        from_cloud = next((cloud["auth"][name] for name in names if cloud.get("auth", {}).get(name)), None)
        from_options = getattr(options, f"os_{option.dest}", None)
        return from_cloud if from_options in (None, option.default) and from_cloud else from_options

    return loader.load_from_options_getter(value), endpoint


def _local(endpoint: str | None) -> tuple[plugin.BaseAuthPlugin, str]:
    """Return the service of this machine, which believes ``user:project`` as a token."""
    from keystoneauth1.token_endpoint import Token

    token = _env("MIGRATOR_TOKEN", "OS_TOKEN") or LOCAL_TOKEN
    user, _, project = token.partition(":")
    address = endpoint or f"{(_env('MIGRATOR_URL') or LOCAL_URL).rstrip('/')}/v3/{project or user}"
    return Token(address, token), address


def _wanted(argv: Sequence[str]) -> tuple[Cloud, str | None]:
    """Return the entry of clouds.yaml (empty: none asked for), and the auth plugin's name (None: the local service)."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in ("--os-cloud", "--os-auth-type", "--os-auth-url", "--os-token", "--os-username", "--os-user-id"):
        early.add_argument(flag, default=_env(flag[2:].upper().replace("-", "_")))
    asked, _ = early.parse_known_args([arg for arg in argv if arg not in ("-h", "--help")])
    cloud = read_cloud(asked.os_cloud) if asked.os_cloud else {}
    # A token alone is worth nothing to the password plugin, and the other way round.
    by_token = asked.os_token and not (asked.os_username or asked.os_user_id)
    if asked.os_auth_type or cloud:
        return cloud, asked.os_auth_type or cloud.get("auth_type") or "password"
    return cloud, ("token" if by_token else "password") if asked.os_auth_url else None


def _register_plugin(parser: argparse.ArgumentParser, argv: Sequence[str], auth_type: str) -> None:
    from keystoneauth1 import exceptions, loading

    try:
        loading.register_auth_argparse_arguments(parser, list(argv), default=auth_type)
    except exceptions.NoMatchingPlugin as error:
        raise errors.BadRequest(reason=f"there is no auth type {error.name!r}") from error


def read_cloud(name: str) -> Cloud:
    """Return the entry ``name`` of clouds.yaml, with what secure.yaml beside it adds; raises BadRequest.

    OS_CLIENT_CONFIG_FILE names another file; otherwise the first found in the working directory, the user's and the
    system's configuration counts.
    """
    import yaml

    for path in _cloud_files():
        if not path.is_file():
            continue
        try:
            clouds = _clouds(yaml.safe_load(path.read_text()))
            secret = path.with_name(f"secure{path.suffix}")
            secrets = _clouds(yaml.safe_load(secret.read_text())) if secret.is_file() else {}
        except (OSError, yaml.YAMLError) as error:
            raise errors.BadRequest(reason=f"{path} cannot be read: {error}") from error
        if name not in clouds:
            raise errors.BadRequest(reason=f"{path} has no cloud {name!r}, only: {', '.join(sorted(clouds)) or 'none'}")
        entry: Cloud = clouds[name] or {}
        more: Cloud = secrets.get(name) or {}
        return {**entry, **more, "auth": {**(entry.get("auth") or {}), **(more.get("auth") or {})}}
    raise errors.BadRequest(reason=f"cloud {name!r} was asked for, but there is no clouds.yaml")


def _cloud_files() -> list[Path]:
    chosen = _env("OS_CLIENT_CONFIG_FILE")
    if chosen:
        return [Path(chosen)]
    return [d.expanduser() / f"clouds{suffix}" for d in _CLOUD_DIRECTORIES for suffix in (".yaml", ".yml")]


def _clouds(content: Any) -> Mapping[str, Any]:
    clouds = content.get("clouds") if isinstance(content, dict) else None
    return clouds if isinstance(clouds, dict) else {}


def _env(*names: str) -> str | None:
    """Return the first of these environment variables that is set and not empty."""
    return next((os.environ[name] for name in names if os.environ.get(name)), None)
