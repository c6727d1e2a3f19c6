"""The sample files are what the code says now."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from migrator import conf as config
from migrator import policy
from tests.support.processes import ROOT

ETC = ROOT / "etc" / "migrator"
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the samples as the generators print them now."""
    directory = tmp_path_factory.mktemp("samples")
    subprocess.run([ROOT / "tests" / "generate-samples", BIN, directory], check=True, capture_output=True, timeout=120)
    return directory


@pytest.mark.parametrize("name", ["migrator.conf.sample", "policy.yaml.sample"])
def test_the_committed_sample_is_what_the_generator_prints(name: str, printed: Path) -> None:
    """If this fails: ``make sample``."""
    assert (ETC / name).read_text(encoding="utf-8") == (printed / name).read_text(encoding="utf-8")


def test_the_sample_says_every_option_and_nothing_of_this_machine() -> None:
    text = (ETC / "migrator.conf.sample").read_text(encoding="utf-8")
    for group, options in config.list_opts():
        section = text.partition(f"[{group}]\n\n")[2].partition("\n[")[0]
        for option in options:
            assert f"\n#{option.dest} =" in section, f"[{group}] {option.name}"
    assert "\n#host = <hostname>\n" in text


def test_the_sample_says_every_rule_with_what_it_polices() -> None:
    text = (ETC / "policy.yaml.sample").read_text(encoding="utf-8")
    for rule in policy.list_rules():
        assert f'\n#"{rule.name}": ' in f"\n{text}", rule.name
    assert "# POST  /volumes/{volume_id}/action (os-migrate_volume)\n" in text


def test_the_full_list_has_the_options_of_the_libraries_too() -> None:
    command = [str(BIN / "oslo-config-generator"), "--config-file", str(ETC / "config-generator.conf")]
    done = subprocess.run(command, check=True, capture_output=True, encoding="utf-8", timeout=120)
    for name in ("enabled_backends", "transport_url", "www_authenticate_uri", "policy_file", "log_file"):
        assert f"\n#{name} =" in done.stdout, name
