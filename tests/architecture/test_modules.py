"""Every module says what it is for, has a name of its own, and big engines have one owner each."""

import sys
from collections import defaultdict

import pytest

from tests.architecture.tree import ROOT, imported_roots, modules, parsed, short

OWNERS = {
    "celery": ("workflows/app.py", "workflows/engines/"),
    "kombu": ("workflows/app.py", "workflows/engines/"),
    "redis": ("workflows/engines/",),
    "pyroute2": ("tasks/skoop/collect/",),
    "kubernetes": ("tasks/skoop/collect/",),
    "hera": ("workflows/engines/",),
    "rich": ("kubectl_probe/",),
    "typer": ("kubectl_probe/",),
    "networkx": ("workflows/",),
}
"""Which modules (a prefix of the path) may import an engine."""
AT_MOST = {"celery": 3, "pyroute2": 3, "kubernetes": 2, "hera": 2}
"""In how many modules an engine is imported."""
SAYING_NOTHING = {"utils", "util", "common", "helpers", "helper", "misc", "base", "lib", "shared"}


def importers() -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for path in modules():
        for root in set(imported_roots(parsed(path))) & OWNERS.keys():
            found[root].append(short(path))
    return found


@pytest.mark.parametrize("engine", OWNERS)
def test_an_engine_is_imported_by_its_owners_alone(engine: str) -> None:
    used_by = importers().get(engine, [])
    strangers = [module for module in used_by if not module.startswith(OWNERS[engine])]
    assert not strangers, f"{engine} belongs to {', '.join(OWNERS[engine])}"
    assert len(used_by) <= AT_MOST.get(engine, 99), used_by


def test_the_search_for_importers_finds_one() -> None:
    assert any(module.startswith("kubectl_probe/commands/") for module in importers()["typer"])


def test_every_module_begins_with_what_it_is_for() -> None:
    import ast

    silent = [short(path) for path in modules() if not (ast.get_docstring(parsed(path)) or "").strip()]
    assert not silent


def test_modules_are_named_for_what_they_know() -> None:
    named_for_nothing = [short(path) for path in modules() if path.stem in SAYING_NOTHING - {"base"}]
    assert not named_for_nothing


def test_top_level_modules_shadow_none_of_the_standard_library() -> None:
    names = {path.relative_to(ROOT).parts[0] for path in modules()}
    assert not names & sys.stdlib_module_names
