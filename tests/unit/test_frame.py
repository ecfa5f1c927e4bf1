"""The frame around the code: what the Makefile offers, what is documented, and what is locked."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import SETTINGS

NAMES = {setting.name for setting in SETTINGS}


def make(repository: Path, *args: str) -> subprocess.CompletedProcess[str]:
    bare = {name: text for name, text in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(["make", *args], cwd=repository, env=bare, capture_output=True, text=True, check=False)  # noqa: S607


def locked(file: Path) -> dict[str, str]:
    """Every pinned package with what follows its name: version, marker and hashes."""
    entries = re.split(r"\n(?=[a-z0-9])", file.read_text())
    found: dict[str, str] = {}
    for entry in entries:
        if match := re.match(r"([a-z0-9-]+)(==.*?)(?=\n    # via|\Z)", entry, re.DOTALL):
            found[match[1]] = found.get(match[1], "") + match[2].strip()
    return found


def compose(repository: Path) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((repository / "docker" / "compose.yaml").read_text())
    return document


def test_make_alone_lists_every_target_and_what_it_does(repository: Path) -> None:
    listed = make(repository)
    targets = re.findall(r"^\.PHONY: (.+)$", (repository / "Makefile").read_text(), re.MULTILINE)
    assert listed.returncode == 0
    assert [line.split()[1] for line in listed.stdout.splitlines()] == targets
    assert all(len(line.split()) > 2 for line in listed.stdout.splitlines())
    assert {"install", "demo", "run", "migrate", "backfill", "test", "check"} <= set(targets)


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ([], "backfill --all"),
        (["SYMBOL=EURUSD", "DAYS=30"], "backfill EURUSD --days 30"),
        (["SYMBOL=EURUSD,BTCUSD", "FROM=2024-01-01"], 'backfill EURUSD BTCUSD --from "2024-01-01"'),
        (["SYMBOL=EURUSD BTCUSD", "TO=2024-06-30"], 'backfill EURUSD BTCUSD --to "2024-06-30"'),
    ],
)
def test_make_backfill_passes_on_what_it_is_given(repository: Path, given: list[str], asked: str) -> None:
    said = make(repository, "--dry-run", "--old-file=.venv/.installed", "backfill", *given).stdout
    assert f"{asked})" in re.sub(r" +\)", ")", re.sub(r" +", " ", said))


def test_make_install_says_what_python_it_needs(repository: Path, tmp_path: Path) -> None:
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(repository / name, tmp_path)
    missing = make(tmp_path, "install", "PYTHON=no-such-python")
    assert missing.returncode != 0
    assert "no-such-python is not there: install Python 3.11 or newer" in missing.stderr
    old = tmp_path / "old-python"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.2\n')
    old.chmod(0o755)
    too_old = make(tmp_path, "install", f"PYTHON={old}")
    assert too_old.returncode != 0
    assert "Python 3.9.2 is too old: Candlewick needs 3.11 or newer" in too_old.stderr
    assert not (tmp_path / ".venv").exists()


def test_the_example_of_env_names_every_setting_with_its_default(repository: Path) -> None:
    lines = (repository / ".env.example").read_text().splitlines()
    for setting in SETTINGS:
        mark = "" if setting.name == "POLYGON_API_KEY" else "# "
        assert f"{mark}{setting.name}={setting.default}" in lines
        assert f"# {setting.takes}" in lines
    named = {match[1] for line in lines if (match := re.match(r"#? ?([A-Z][A-Z0-9_]*)=", line))}
    assert named == NAMES | {"POSTGRES_PASSWORD"}


def test_the_readme_has_a_row_for_every_setting(repository: Path) -> None:
    expected = [
        f"| {setting.name} | {f'`{setting.default}`' if setting.default else ''} | {setting.takes} |"
        for setting in SETTINGS
    ]
    rows = [line for line in (repository / "README.md").read_text().splitlines() if re.match(r"\| [A-Z0-9_]+ \|", line)]
    assert rows == expected


def test_every_dependency_is_locked_and_no_address_with_it(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    for file, wanted in (
        ("requirements.lock", project["dependencies"] + project["optional-dependencies"]["dev"]),
        ("docker/requirements.lock", project["dependencies"]),
    ):
        text = (repository / file).read_text()
        assert "://" not in text
        assert {re.split(r"[\[>=;]", name)[0] for name in wanted} <= set(locked(repository / file))


def test_the_image_gets_the_versions_that_were_tested(repository: Path) -> None:
    everything = locked(repository / "requirements.lock")
    image = locked(repository / "docker" / "requirements.lock")
    assert image.items() <= everything.items()
    assert "pytest" not in image
    assert all("--hash=sha256:" in entry for entry in everything.values())


def test_compose_migrates_before_it_serves_and_only_to_this_machine(repository: Path) -> None:
    services = compose(repository)["services"]
    assert f'IMAGE = "{services["database"]["image"]}"' in (repository / "tests" / "conftest.py").read_text()
    assert services["migrate"]["depends_on"] == {"database": {"condition": "service_healthy"}}
    assert services["service"]["depends_on"] == {"migrate": {"condition": "service_completed_successfully"}}
    assert services["service"]["ports"] == ["127.0.0.1:8001:8001"]
    assert "ports" not in services["database"]


def test_compose_sets_only_settings_that_exist_and_the_whole_database(repository: Path) -> None:
    environment = compose(repository)["services"]["service"]["environment"]
    assert set(environment) <= NAMES
    assert {name for name in NAMES if name.startswith(("DB_", "DATABASE_"))} <= set(environment)
    assert environment["DATABASE_URL"] == ""


def test_the_builder_of_the_image_sees_no_settings(repository: Path) -> None:
    lines = (repository / "docker" / "Dockerfile.dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert not [rule for rule in rules if "env" in rule or rule in {"!.", "!*"}]
