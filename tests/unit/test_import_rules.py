"""Who may import whom (architecture, part 2): read from the sources, so that no import can hide in a function."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import migrator

PACKAGE = Path(migrator.__file__).parent
PURE = ["volume/copy", "volume/extents", "volume/verify", "volume/states", "backend_name"]
PURE += [f"volume/{name}" for name in ("control", "crew", "digests", "files", "page_cache", "tuning")]
HASHES = {"xxhash"}


def imported(path: Path) -> set[str]:
    """Every module that the file names in an import, wherever it stands; type-checking imports included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def sources(folder: str) -> list[Path]:
    found = sorted((PACKAGE / folder).rglob("*.py"))
    assert found, folder
    return found


def test_the_pure_modules_import_the_standard_library_a_hash_and_each_other() -> None:
    allowed = {f"migrator.{name.replace('/', '.')}" for name in PURE} | {"migrator.volume", "migrator.volume.endpoints"}
    for name in [*PURE, "volume/endpoints"]:
        for module in imported(PACKAGE / f"{name}.py"):
            root = module.split(".")[0]
            known = root in sys.stdlib_module_names or root in HASHES
            assert known or module in allowed or module.rpartition(".")[0] in allowed, f"{name} imports {module}"


def test_drivers_never_import_the_volume_service() -> None:
    for path in sources("drivers"):
        assert not [m for m in imported(path) if m.startswith("migrator.volume")], path


def test_the_api_reaches_the_volume_service_only_through_rpc_and_the_database() -> None:
    for path in sources("api"):
        assert not [m for m in imported(path) if m.startswith(("migrator.volume", "migrator.drivers"))], path


def test_only_service_knows_eventlet() -> None:
    for path in PACKAGE.rglob("*.py"):
        if path.name != "service.py" or path.parent != PACKAGE:
            assert not [m for m in imported(path) if m.split(".")[0] == "eventlet"], path


def test_only_conf_declares_options() -> None:
    for path in PACKAGE.rglob("*.py"):
        if path != PACKAGE / "conf.py":
            text = path.read_text(encoding="utf-8")
            assert "Opt(" not in text.replace("SubCommandOpt(", ""), path
