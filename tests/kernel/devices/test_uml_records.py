"""What user-mode Linux, and Debian's kernel in qemu, did with one kind of device at a time, healthy and broken: the simulator foretells it from what was collected."""

from pathlib import Path

import msgspec
import pytest
from zstandard import ZstdDecompressor

from tasks.skoop.model.state import Section
from tests.kernel.devices.comparing import differences
from tests.kernel.devices.performing import Record
from tests.kernel.devices.world import QEMU_WORLDS, WORLDS, read_world

DATA = Path(__file__).parents[2] / "data"
FILES = sorted([*(DATA / "uml").glob("*.json.zst"), *(DATA / "qemu").glob("*.json.zst")])
NEEDED_BY_THE_HOST = {"vxlan", "macvlan", "nexthop"}


def read(path: Path) -> Record:
    return msgspec.json.decode(ZstdDecompressor().decompress(path.read_bytes(), max_output_size=1 << 26), type=Record)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name.removesuffix(".json.zst"))
def test_the_simulator_foretells_what_was_recorded(path: Path) -> None:
    record = read(path)
    assert record.tried
    assert not list(differences(record))


def test_every_world_was_recorded_healthy_and_with_two_faults() -> None:
    seen = [(record.world, record.fault) for record in map(read, FILES)]
    for world in map(read_world, (*WORLDS, *QEMU_WORLDS)):
        faults = [fault for name, fault in seen if name == world.name]
        assert "" in faults, world.name
        assert len(faults) >= min(3, 1 + len(world.faults)), world.name


def test_nothing_was_left_uncollected() -> None:
    gaps = {
        (record.world, gap.section): gap.reason
        for record in map(read, FILES)
        for one in record.netns.values()
        for gap in one.missing
    }
    without_the_module = {slot for slot in gaps if slot[0].startswith("wireguard") and slot[1] == Section.IPSETS}
    assert not gaps.keys() - without_the_module, (
        gaps
    )  # that machine had not loaded ip_set, and no rule there asks for a set


def test_a_wrong_outcome_is_noticed() -> None:
    record = read(FILES[0])
    other = {"connected": "timeout", "timeout": "connected"}
    changed = tuple(
        msgspec.structs.replace(one, view=other.get(one.view, "timeout"), answer="") for one in record.tried
    )
    assert len(list(differences(msgspec.structs.replace(record, tried=changed)))) == len(changed)
