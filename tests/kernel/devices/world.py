"""A small network with one kind of device in it, as a text that a network engineer can read, and its faults.

    world ipip
    needs ipip
    cable n1:eth0 n2:eth0          a veth, its two ends up
    n1: ip addr add 192.168.77.1/24 dev eth0
    serve p2 tcp 80                listens on every address; `@dev` binds to a device, an address in front to that
    ask p1 tcp 10.244.2.2 80       also `udp`, `icmp`; `payload=N` goes each way, `df` forbids fragments
    fault receiver lacks the tunnel
      n2: ip link del t1

Namespaces come into being by being named. Lines of one namespace run in order, those of namespaces in the order of their names'
first appearance unless a `then:` line starts another round.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lab.prober import Ask
from tasks.skoop.model.ids import NetnsId

WORLDS = sorted((Path(__file__).parent / "worlds").glob("*.world"))
QEMU_WORLDS = sorted((Path(__file__).parent / "worlds" / "qemu").glob("*.world"))
"""Those of devices that user-mode Linux lacks, too."""
PATIENCE_S = 0.6


@dataclass(frozen=True, slots=True, kw_only=True)
class Serve:
    """A listener to open."""

    space: str
    protocol: str
    port: int
    address: str = ""
    dev: str = ""


@dataclass(slots=True, kw_only=True)
class World:
    """A world as its file says."""

    name: str
    needs: tuple[str, ...] = ()
    cables: list[tuple[tuple[str, str], tuple[str, str]]] = field(default_factory=list)
    lines: list[tuple[str, str]] = field(default_factory=list)
    serves: list[Serve] = field(default_factory=list)
    asks: list[Ask] = field(default_factory=list)
    faults: dict[str, list[tuple[str, str]]] = field(default_factory=dict)

    @property
    def spaces(self) -> tuple[str, ...]:
        """Names of its namespaces, in order of appearance."""
        ends = [end[0] for cable in self.cables for end in cable]
        return tuple(dict.fromkeys([*ends, *(space for space, _ in self.lines)]))


def netns_of(space: str) -> NetnsId:
    """Return the id under which a namespace of a world is collected: names that begin with p are pods' by habit only."""
    return NetnsId(f"node/{space}")


def read_world(path: Path) -> World:
    """Return the world of a file. Raises ValueError with the line."""
    world = World(name=path.stem)
    into = world.lines
    for number, raw in enumerate(path.read_text().splitlines(), 1):
        line = raw.partition(" #")[0].strip() if not raw.lstrip().startswith("#") else ""
        if not line:
            continue
        word, _, rest = line.partition(" ")
        match word:
            case "world":
                world.name = rest
            case "needs":
                world.needs = tuple(rest.split())
            case "cable":
                one, two = (end.partition(":")[::2] for end in rest.split())
                world.cables.append((one, two))
            case "serve":
                world.serves += _serves(rest)
            case "ask":
                world.asks.append(_ask(rest))
            case "fault":
                into = world.faults.setdefault(rest, [])
            case _ if word.endswith(":"):
                into.append((word[:-1], rest))
            case _:
                raise ValueError(f"{path.name}:{number}: {line}")
    return world


def _serves(rest: str) -> Iterator[Serve]:
    space, protocol, *where = rest.split()
    dev = next((one[1:] for one in where if one.startswith("@")), "")
    address = next((one for one in where if not one.isdigit() and not one.startswith("@")), "")
    yield from (
        Serve(space=space, protocol=protocol, port=int(port), address=address, dev=dev)
        for port in where
        if port.isdigit()
    )


def _ask(rest: str) -> Ask:
    src, protocol, dst, *more = rest.split()
    options = dict(one.partition("=")[::2] for one in more if not one.isdigit())
    payload = int(options.get("payload", "32" if protocol == "udp" else "0"))
    return Ask(
        src=netns_of(src),
        dst=dst,
        dport=next((int(one) for one in more if one.isdigit()), 0),
        protocol=protocol,
        payload=payload,
        df="df" in options,
        timeout_s=PATIENCE_S,
    )
