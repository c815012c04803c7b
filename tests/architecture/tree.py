"""The source files of this repository, for tests that read them."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("tasks", "workflows", "kubectl_probe", "lab", "master", "agent", "tunnel")
"""What the wheel ships (pyproject.toml says the same; a test compares)."""
LEFT_BY_TOOLS = frozenset({"build", "dist", "__pycache__"})
OURS_THOUGH_HIDDEN = frozenset({".ci", ".gitignore"})


def files(*suffixes: str) -> Iterator[Path]:
    """Yield the files of the tree with these suffixes (all if none), without what tools leave behind."""
    for path in sorted(ROOT.rglob("*")):
        if any(map(_left_by_tools, path.relative_to(ROOT).parts)) or not path.is_file():
            continue
        if not suffixes or path.suffix in suffixes:
            yield path


def _left_by_tools(part: str) -> bool:
    return part in LEFT_BY_TOOLS or (part.startswith(".") and part not in OURS_THOUGH_HIDDEN)


def modules() -> Iterator[Path]:
    """Yield every Python module of the shipped packages."""
    for path in files(".py"):
        if path.relative_to(ROOT).parts[0] in PACKAGES:
            yield path


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imported_roots(tree: ast.AST) -> Iterator[str]:
    """Yield the first part of the name of every module that the code imports, at its top or within functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name.partition(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            yield node.module.partition(".")[0]


def short(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()
