"""`python -m tests.scenarios [--rewrite] [FILE …]`: shows what the simulator says of scenarios, or writes it into the files."""

import argparse
from pathlib import Path

from tests.scenarios.scenario import parse
from tests.scenarios.simulated import tell
from tests.scenarios.texts import CASES, rewritten


def main() -> None:
    """Show or rewrite."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--rewrite", action="store_true", help="write the expected traces into the files")
    given = parser.parse_args()
    for path in given.files or CASES:
        text = path.read_text()
        scenario = parse(text, path.stem)
        new = rewritten(text, scenario, [lines for _, lines in tell(scenario)])
        if not given.rewrite:
            print(new)  # noqa: T201
        elif new != text:
            path.write_text(new)
            print(f"rewrote {path}")  # noqa: T201


if __name__ == "__main__":
    main()
