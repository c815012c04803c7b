"""The program that runs inside the other kernel: performs worlds and writes a record of each. `python -m … FOLDER WORLD …`."""

import sys
import traceback
from pathlib import Path

import msgspec

from lab.errors import LabFailed
from tests.kernel.devices.performing import cases, perform
from tests.kernel.devices.world import QEMU_WORLDS, WORLDS, read_world


def main(argv: list[str]) -> int:
    """Perform the named worlds; a record or an `.err` each. Return the exit status."""
    folder, wanted = Path(argv[0]), argv[1:]
    worlds = [read_world(path) for path in (*WORLDS, *QEMU_WORLDS) if path.stem in wanted]
    for world, fault in cases(worlds):
        name = f"{world.name}--{fault.replace(' ', '-') or 'healthy'}"
        try:
            record = perform(world, fault)
        except (LabFailed, OSError, ValueError):
            (folder / f"{name}.err").write_text(traceback.format_exc())
            continue
        (folder / f"{name}.json").write_bytes(msgspec.json.encode(record))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
