"""The wheel: what is in it, that nobody else's package bears our names, that it works where nothing else of ours is."""

import os
import subprocess
import sys
import tomllib
import venv
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.architecture.tree import PACKAGES, ROOT

EVERY_DOOR = (
    "import agent, lab, master, tunnel, workflows, tasks.skoop.report.text, kubectl_probe.app, kubectl_probe.main"
)


def pyproject() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_wheel_ships_these_packages() -> None:
    targets = pyproject()["tool"]["hatch"]["build"]["targets"]  # type: ignore[index]
    assert set(targets["wheel"]["packages"]) == set(PACKAGES)


def test_every_shipped_package_is_in_the_import_contract() -> None:
    contract = pyproject()["tool"]["importlinter"]  # type: ignore[index]
    assert set(contract["root_packages"]) == set(PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_no_other_distribution_owns_our_names(package: str) -> None:
    assert set(packages_distributions().get(package, [])) <= {"kubeprobe"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT, check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel in it; the dependencies are those of this one, nothing is fetched."""
    home = tmp_path_factory.mktemp("fresh")
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    site = Path(
        subprocess.run(
            [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            check=True, capture_output=True, text=True,
        ).stdout.strip()
    )  # fmt: skip
    subprocess.run(
        [sys.executable, "-m", "pip", "-qq", "--python", str(python), "install", "--no-index", "--no-deps", "--no-compile", str(wheel)],
        check=True, timeout=120,
    )  # fmt: skip
    import msgspec

    (site / "dependencies.pth").write_text(str(Path(msgspec.__file__).resolve().parents[1]) + "\n")
    return home


def clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST", "COV"))}


@pytest.mark.slow
def test_the_wheel_holds_licence_snapshot_and_no_tests(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert any(name.startswith("kubectl_probe/data/") and name.endswith(".kps") for name in names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)


@pytest.mark.slow
def test_the_installed_wheel_works_from_anywhere(installed: Path, tmp_path: Path) -> None:
    code = f"{EVERY_DOOR}; import sys; sys.exit(not kubectl_probe.main.__file__.startswith(sys.prefix))"
    subprocess.run(
        [str(installed / "bin" / "python"), "-P", "-W", "error", "-c", code],
        check=True, cwd=tmp_path, env=clean_environment(), timeout=120,
    )  # fmt: skip


@pytest.mark.slow
def test_the_installed_command_answers(installed: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [str(installed / "bin" / "kubectl-probe"), "version"],
        check=True, cwd=tmp_path, env=clean_environment(), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.startswith("kubectl-probe ")
