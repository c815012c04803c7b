"""`python -m tests.scenarios [--rewrite | --kernel] [FILE …]`: shows what the simulator says of scenarios, or writes it down.

`--kernel` carries them out in the kernel as well (as root) and shows only where the two differ.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from tests.scenarios.building import built, filter_up
from tests.scenarios.performed import Performed
from tests.scenarios.results import difference
from tests.scenarios.scenario import BENCH, Scenario, load
from tests.scenarios.simulated import Simulated, tell
from tests.scenarios.tables import filters_of, nft_file, nft_objects
from tests.scenarios.texts import CASES, rewritten


def main() -> None:
    """Show, rewrite or compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--rewrite", action="store_true", help="write the expected traces into the files")
    parser.add_argument("--kernel", action="store_true", help="show where the kernel does something else")
    given = parser.parse_args()
    differ = 0
    for path in given.files or CASES:
        scenario = load(path)
        if given.rewrite:
            _ask_nft(scenario)
        if given.kernel:
            differ += _compare(scenario)
            continue
        text = path.read_text()
        new = rewritten(text, scenario, [lines for _, lines in tell(scenario)])
        if not given.rewrite:
            print(new)  # noqa: T201
        elif new != text:
            path.write_text(new)
            print(f"rewrote {path}")  # noqa: T201
    sys.exit(bool(differ))


def _ask_nft(scenario: Scenario) -> None:
    """Write what nft makes of a scenario's nft lines beside it, if it is not there or no longer true."""
    if scenario.path is None or not any(space.nft for space in scenario.spaces.values()):
        return
    with tempfile.TemporaryDirectory() as folder, built(scenario, Path(folder) / "lock") as spaces:
        filter_up(scenario, spaces, Path(folder) / "lock")
        found = {
            name: nft_objects(spaces[name], filters_of(space))
            for name, space in scenario.spaces.items()
            if space.nft and name != BENCH
        }
    text = json.dumps(found, indent=1, sort_keys=True) + "\n"
    there = nft_file(scenario.path)
    if not there.exists() or there.read_text() != text:
        there.write_text(text)
        print(f"rewrote {there}")  # noqa: T201


def _compare(scenario: Scenario) -> bool:
    """Say how the two runners differ, if they do."""
    with tempfile.TemporaryDirectory() as folder:
        kernel = Performed(Path(folder))
        found = kernel.run(scenario)
    said = list(kernel.surprises)
    for trial, told, seen in zip(scenario.trials, Simulated().run(scenario), found, strict=True):
        if wrong := difference(trial, told, seen):
            said.append(f"line {trial.number + 1}: {wrong}")
    for line in said:
        print(f"{scenario.name}: {line}")  # noqa: T201
    return bool(said)


if __name__ == "__main__":
    main()
