"""The tree itself: pinned without hosts, free of the machine it was written on, its generated files up to date."""

import re
import subprocess
import tomllib

import pytest

from tests.architecture.tree import ROOT, files, short

TEXT = (".py", ".md", ".toml", ".lock", ".sh", ".txt", ".json", ".yaml", ".yml", ".cfg", "")
WORKPLACES = tuple(
    "/".join(("", *parts)) for parts in (("work", "main"), ("work", "shared"), ("tmp", "w", ""), ("root", "."))
)
REGISTRIES = tuple(
    ".".join(parts) for parts in (("pypi", "org"), ("pythonhosted", "org"), ("npmjs", "org"), ("deb", "debian"))
)
"""Joined here, so that this file is not among those that name them."""


def lock_lines(name: str) -> list[str]:
    return (ROOT / "requirements" / name).read_text().splitlines()


@pytest.mark.parametrize("name", ["run.lock", "dev.lock"])
def test_a_lock_names_no_host(name: str) -> None:
    forbidden = re.compile(r"https?://|file:|--(extra-)?index|--find-links|--trusted-host| @ ")
    assert not [line for line in lock_lines(name) if forbidden.search(line)]


@pytest.mark.parametrize("name", ["run.lock", "dev.lock"])
def test_a_lock_pins_everything_with_hashes(name: str) -> None:
    lines = lock_lines(name)
    pins = [number for number, line in enumerate(lines) if re.match(r"^[A-Za-z0-9]", line)]
    assert len(pins) > 30
    for number in pins:
        assert "==" in lines[number], lines[number]
        assert "--hash=sha256:" in lines[number + 1], lines[number]


def test_the_development_lock_agrees_with_the_other() -> None:
    pins = {
        name: set(re.findall(r"^([\w.-]+==[\w.]+)", "\n".join(lock_lines(name)), re.M))
        for name in ("run.lock", "dev.lock")
    }
    assert pins["run.lock"] <= pins["dev.lock"]
    assert "kubernetes==37.0.1" in pins["run.lock"]


def test_every_dependency_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    locked = {re.split(r"[=\s]", line)[0].lower().replace("_", "-") for line in lock_lines("run.lock")}
    wanted = {re.split(r"[\[<>=!~;\s]", text)[0].lower().replace("_", "-") for text in project["dependencies"]}
    assert wanted <= locked


def test_no_file_knows_the_machine_it_was_written_on() -> None:
    telling = [
        f"{short(path)}: {word}"
        for path in files()
        if path.suffix in TEXT and path.stat().st_size < 4 << 20
        for word in (*WORKPLACES, *REGISTRIES)
        if word.encode() in path.read_bytes()
    ]
    assert not telling


def test_the_makefile_explains_its_targets() -> None:
    said = subprocess.run(["make", "help"], cwd=ROOT, check=True, capture_output=True, text=True, timeout=30).stdout
    for target in ("demo", "test", "check", "gen", "lab", "bench", "clean"):
        assert re.search(rf"^  {target} +\S", said, re.M), target


def test_scripts_are_executable() -> None:
    scripts = [*(ROOT / "scripts").glob("*.sh"), ROOT / ".ci" / "run"]
    assert scripts
    assert not [short(path) for path in scripts if not path.stat().st_mode & 0o111]
