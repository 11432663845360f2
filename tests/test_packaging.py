"""What is installed, and what an import brings along."""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import ope

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "matplotlib", "minari", "statsmodels", "gymnasium")
USERS_IMPORTS = "import ope.report; from ope import PolicySelector; from ope.estimators import WeightedIS; from ope.plotting import plot_ess"


def _project() -> dict[str, Any]:
    if sys.version_info < (3, 11):
        pytest.skip("tomllib came with Python 3.11; the other jobs read pyproject.toml")
    import tomllib

    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)


def _packages_on_disk() -> list[str]:
    # The links ope/estimators and ope/policies lead to these folders, so that both ways give the same names.
    own = {path.parent.relative_to(ROOT) for path in (ROOT / "ope").rglob("__init__.py")}
    top = {
        Path("ope") / path.parent.relative_to(ROOT)
        for name in ("estimators", "policies")
        for path in (ROOT / name).rglob("__init__.py")
    }
    return sorted(".".join(folder.parts) for folder in own | top)


def _in_fresh_python(code: str) -> Any:
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    return json.loads(done.stdout)


def test_every_package_on_disk_is_installed() -> None:
    assert sorted(_project()["tool"]["setuptools"]["packages"]) == _packages_on_disk()


def test_console_script_leads_to_a_function() -> None:
    module, _, function = _project()["project"]["scripts"]["ope"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_the_oldest_versions_are_those_that_were_tried() -> None:
    project = _project()["project"]
    extras = project["optional-dependencies"]
    wanted = [project["dependencies"], *(extras[name] for name in ("minari", "demo", "plot", "stats", "dev"))]
    tools = {"mypy", "ruff", "pre-commit"}  # they look at the code, and no test runs them
    lowest = {
        requirement.name: next(iter(requirement.specifier)).version
        for requirement in map(Requirement, itertools.chain(*wanted))
        if requirement.specifier and requirement.name not in tools
    }
    lines = (ROOT / "constraints-oldest.txt").read_text().splitlines()
    tried = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert {name: Version(tried[name]) for name in lowest} == {name: Version(low) for name, low in lowest.items()}


def test_versions_agree() -> None:
    assert importlib.metadata.version("ope-learn") == ope.__version__ == _project()["project"]["version"]


def test_changelog_knows_the_version() -> None:
    assert f"## [{ope.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("code", ["import ope", USERS_IMPORTS])
def test_import_brings_nothing_heavy(code: str) -> None:
    loaded = _in_fresh_python(
        f"{code}\nimport json, sys\nprint(json.dumps([n for n in {HEAVY!r} if n in sys.modules]))"
    )
    assert loaded == []


def test_import_ope_alone_brings_no_dependency() -> None:
    code = "import ope, json, sys; print(json.dumps([n for n in ('numpy', 'pandas', 'scipy', 'sklearn') if n in sys.modules]))"
    assert _in_fresh_python(code) == []


@pytest.mark.parametrize("name", ope.__all__)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(ope, name) is not None
    assert name in dir(ope)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Estimator'"):
        _ = ope.Estimator


@pytest.mark.parametrize("folder", ["estimators", "policies"])
def test_folder_is_no_package_of_its_own(folder: str) -> None:
    code = f"import {folder}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1
    assert f"ImportError: import this package as ope.{folder}, not {folder}" in done.stderr


@pytest.mark.parametrize("folder", ["estimators", "policies"])
def test_link_beside_the_packages(folder: str) -> None:
    link = ROOT / "ope" / folder
    assert link.is_symlink()
    assert link.readlink() == Path("..") / folder
