"""``migrator complete`` writes a script by which bash completes commands and their options."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from migrator.cli import app
from tests.support.processes import ROOT
from tests.unit.cli_stand_in import run

#: What the package bash-completion has for the script: it splits the words, and nothing else of it is used.
_SPLIT = '_get_comp_words_by_ref() { cur=${COMP_WORDS[COMP_CWORD]}; prev=""; words=("${COMP_WORDS[@]}"); }'


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    printed = run("complete")
    assert (printed.code, printed.err) == (0, "")
    path = tmp_path_factory.mktemp("completion") / "migrator.bash"
    path.write_text(printed.out)
    return path


def offered(script: Path, *words: str) -> list[str]:
    """Return what bash offers for the last of ``words``."""
    typed = " ".join(f"'{word}'" for word in words)
    ask = f"COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; _migrator; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run(
        ["bash", "--norc", "-c", f"{_SPLIT}\nsource {script}\n{ask}"], capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_every_command_is_offered(script: Path) -> None:
    assert set(offered(script, "migrator", "")) == {*app.COMMANDS, "complete", "help"}


def test_the_beginning_of_a_command_is_completed(script: Path) -> None:
    expected = {name for name in app.COMMANDS if name.startswith("migration-")}
    assert set(offered(script, "migrator", "migration-")) == expected
    assert offered(script, "migrator", "no-such") == []


@pytest.mark.parametrize(
    ("command", "begun", "expected"),
    [
        ("migrate", "--", {"--force-host-copy", "--lock-volume", "--wait"}),
        ("create", "--sn", {"--snapshot-id"}),
        ("migration-cancel", "--f", {"--force"}),
        ("get-pools", "--det", {"--detail"}),
    ],
)
def test_options_of_a_command_are_offered(script: Path, command: str, begun: str, expected: set[str]) -> None:
    assert expected <= set(offered(script, "migrator", command, begun))
    assert all(option.startswith(begun) for option in offered(script, "migrator", command, begun))


def test_bash_knows_for_which_program_it_is(script: Path) -> None:
    done = subprocess.run(
        ["bash", "--norc", "-c", f"source {script}; complete -p migrator"], capture_output=True, text=True, check=True
    )
    assert "-F _migrator migrator" in done.stdout


def test_it_is_documented() -> None:
    assert "migrator complete" in (ROOT / "doc/source/user/cli.rst").read_text(encoding="utf-8")
