"""Writes every file of this repository that is made from another, or with --check says which of them is out of date.

The table of them is GENERATED. What is written depends on the sources alone, never on the machine or the day.
"""

import argparse
import difflib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEMO_SNAPSHOT = ROOT / "kubectl_probe" / "data" / "fdb-missing.kps"
DEMO_RECORDING = ROOT / "tests" / "data" / "broken" / "il-fdb-missing-n3.tar.zst"
NOTICE = "<!-- Made by `make gen`; change its source instead. -->"


def schema_files() -> Iterator[tuple[Path, str]]:
    """The published JSON Schema of a diagnosis."""
    from tasks.skoop.report.document import schema

    yield ROOT / "docs" / "diagnosis.schema.json", json.dumps(schema(), indent=2, sort_keys=True) + "\n"


def code_files() -> Iterator[tuple[Path, str]]:
    """A page for every code of a suspicion, and their index."""
    from scripts.code_pages import index_page, pages

    folder = ROOT / "docs" / "codes"
    for name, text in pages():
        yield folder / f"{name}.md", f"{NOTICE}\n\n{text}"
    yield folder / "README.md", f"{NOTICE}\n\n{index_page()}"


def command_files() -> Iterator[tuple[Path, str]]:
    """The reference of the command line, from its own help."""
    from scripts.command_pages import reference

    yield ROOT / "docs" / "cli.md", f"{NOTICE}\n\n{reference()}"


def supported_files() -> Iterator[tuple[Path, str]]:
    """What the simulator knows, from its tables."""
    from scripts.supported_page import page

    yield ROOT / "docs" / "supported.md", f"{NOTICE}\n\n{page()}"


def readme_file() -> Iterator[tuple[Path, str]]:
    """README with the report that the program gives of the bundled snapshot, between its markers."""
    from scripts.readme_example import with_example

    readme = ROOT / "README.md"
    yield readme, with_example(readme.read_text(), DEMO_SNAPSHOT.relative_to(ROOT))


TEXTS: Mapping[str, Callable[[], Iterator[tuple[Path, str]]]] = {
    "schema": schema_files,
    "codes": code_files,
    "cli": command_files,
    "supported": supported_files,
    "readme": readme_file,
}


def make_demo_snapshot(target: Path) -> str:
    """Make the snapshot that the demo falls back on from the recording of a real cluster; return its digest."""
    from tasks.skoop.collect.dumps import load_dumps
    from tasks.skoop.snapshot import save

    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            ["tar", "--use-compress-program=zstd -d --long=23", "-xf", str(DEMO_RECORDING), "-C", folder], check=True
        )
        (dumps,) = (path for path in Path(folder).iterdir() if path.is_dir())
        return save(load_dumps(dumps), target)


def check_texts() -> list[str]:
    """Return a description of every generated text that is not what its source makes of it."""
    wrong: list[str] = []
    for make in TEXTS.values():
        made = dict(make())
        for path, text in made.items():
            there = path.read_text() if path.exists() else ""
            if there != text:
                diff = difflib.unified_diff(there.splitlines(), text.splitlines(), "there", "made", lineterm="", n=1)
                wrong.append(f"{path.relative_to(ROOT)} is out of date:\n" + "\n".join(list(diff)[:20]))
        wrong += [f"{path.relative_to(ROOT)} is made from nothing any more" for path in left_over(made)]
    return wrong


def left_over(made: Mapping[Path, str]) -> list[Path]:
    """Return pages of codes that no longer exist."""
    return [
        path
        for path in (ROOT / "docs" / "codes").glob("*.md")
        if any(p.parent == path.parent for p in made) and path not in made
    ]


def check_snapshot() -> list[str]:
    """Return a description of the bundled snapshot if it does not hold what its recording makes now."""
    from tasks.skoop.snapshot import diff

    if not DEMO_SNAPSHOT.exists():
        return [f"{DEMO_SNAPSHOT.relative_to(ROOT)} is not there"]
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "made.kps"
        make_demo_snapshot(made)
        same = diff(DEMO_SNAPSHOT, made).same
    return [] if same else [f"{DEMO_SNAPSHOT.relative_to(ROOT)} is out of date"]


def write_all() -> None:
    """Write every generated file."""
    for make in TEXTS.values():
        made = dict(make())
        for path, text in made.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists() or path.read_text() != text:
                path.write_text(text)
                print(f"wrote {path.relative_to(ROOT)}")
        for path in left_over(made):
            path.unlink()
            print(f"removed {path.relative_to(ROOT)}")
    if check_snapshot():
        DEMO_SNAPSHOT.parent.mkdir(exist_ok=True)
        make_demo_snapshot(DEMO_SNAPSHOT)
        print(f"wrote {DEMO_SNAPSHOT.relative_to(ROOT)}")


def main() -> int:
    """Write or check; exit status 1 if something is out of date."""
    os.chdir(ROOT)
    os.environ.update(COLUMNS="100", NO_COLOR="1")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; say what is out of date")
    if not parser.parse_args().check:
        write_all()
        return 0
    wrong = check_texts() + check_snapshot()
    for one in wrong:
        print(one)
    if wrong:
        print("run 'make gen' and commit what it writes")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
