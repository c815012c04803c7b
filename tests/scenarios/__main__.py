"""`python -m tests.scenarios [--rewrite | --kernel] [FILE …]`: shows what the simulator says of scenarios, or writes it down.

`--kernel` carries them out in the kernel as well (as root) and shows only where the two differ.
"""

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from tests.scenarios.building import built, filter_up, nft_tables
from tests.scenarios.performed import Performed
from tests.scenarios.results import difference
from tests.scenarios.scenario import Scenario, listing_of, load, parse
from tests.scenarios.simulated import Simulated, tell
from tests.scenarios.texts import CASES, rewritten


def list_tables(path: Path) -> None:
    """Write what the kernel makes of a scenario's `nft` lines beside it; what does not differ stays as it is."""
    scenario = parse(path.read_text(), path.stem)
    with TemporaryDirectory() as folder, built(scenario, Path(folder, "lock")) as spaces:
        filter_up(scenario, spaces, Path(folder, "lock"))
        listed = {name: nft_tables(space, spaces[name]) for name, space in scenario.spaces.items() if space.nft}
    new = msgspec.json.format(msgspec.json.encode(listed), indent=1) + b"\n"
    if not listing_of(path).exists() or listing_of(path).read_bytes() != new:
        listing_of(path).write_bytes(new)


def main() -> None:
    """Show, rewrite or compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--rewrite", action="store_true", help="write the expected traces into the files")
    parser.add_argument("--kernel", action="store_true", help="show where the kernel does something else")
    given = parser.parse_args()
    differ = 0
    for path in given.files or CASES:
        if given.kernel:
            differ += _compare(load(path))
            continue
        text = path.read_text()
        if given.rewrite and any(space.nft for space in parse(text, path.stem).spaces.values()):
            list_tables(path)
        scenario = load(path)
        new = rewritten(text, scenario, [lines for _, lines in tell(scenario)])
        if not given.rewrite:
            print(new)  # noqa: T201
        elif new != text:
            path.write_text(new)
            print(f"rewrote {path}")  # noqa: T201
    sys.exit(bool(differ))


def _compare(scenario: Scenario) -> bool:
    """Say how the two runners differ, if they do."""
    with TemporaryDirectory() as folder:
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
