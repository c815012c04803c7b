"""What does a scenario file say? Network namespaces as the tools would set them up, what is tried there, and what is expected.

Lines are words; indentation is for the reader. Remarks (`# …`) at the top tell what the file is about.

    veth client:eth0 gw:eth0                                     # a pair of devices
    netns gw
      link   eth0 10.0.0.1/24  [mtu N] [down] [noarp] [master BR] [hairpin] [isolated] [noflood] [nolearning] [group N]
             [state listening|learning]
      link   eth0 fd00::1/64 deprecated                          # the address in front of it
      nexthop id 1 via 10.0.0.9                                  # as `ip nexthop add`
      bridge br0 [nf_call_iptables 1]                            # options as `ip link add … type bridge` has them
      vxlan  flannel.1 id 1 local 10.0.0.1 dev eth0 dstport 8472 nolearning
      dummy  lan
      macvlan eth0 on node:eth0 mode bridge                      # here, on a device of another namespace
      route  10.9.0.0/16 via 10.0.0.9 table 100                  # as `ip route add`; `rule` and `neigh` likewise
      fdb    02:… dev flannel.1 dst 10.0.0.2 self                # as `bridge fdb append`
      sysctl net.ipv4.ip_forward=1
      iptables -t nat -A PREROUTING …                            # also ip6tables, iptables-nft, ip6tables-nft
      ipset  create pods hash:ip                                 # as ipset(8) has it; likewise `ipset add pods 10.0.0.1`
      nft    add table netdev t                                  # as `nft -f` reads them, in order; see below
      conntrack tcp 10.0.0.1:5000 > 10.96.0.10:80 reply 10.0.0.7:8080 > 10.0.0.1:5000 [unreplied] [assured] [zone N] [mark N]
      listen tcp 8080 [ADDRESS] [dev DEV] [v6only] [full] [shared] [transparent]         # shared: SO_REUSEPORT
    connect client tcp 10.0.0.7:80 [sport N] [uid N] [payload N] [df] [times N] [tos N]
    packet in=gw:eth0 tcp 192.0.2.9:40000 > 10.0.0.7:80 [ack|synack|rst] [ttl N] [len N] [df] [tos N]
    packet in=gw:eth0 icmp 10.0.0.9 > 10.0.0.7 3/1 about udp 10.0.0.7:53 > 10.0.0.9:5000

A device that no `veth` line pairs has its other end on the tester's bench: `packet` puts a packet in there, and what comes out
is looked at. `@gw:eth0` stands for the MAC of that device. A `conntrack` entry is ESTABLISHED where it is TCP and was answered. Below each
`connect` and `packet` stands what it gives, written by `python -m tests.scenarios --rewrite`.

What `nft` lines make is kept beside the file, `….nft.json`, as the kernel listed it when it was written (as root: `--rewrite`), so that the
simulator reads what a collector reads; the kernel's runner compares it with what stands there.
"""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from tasks.skoop.model.addr import Ip, Mac
from tasks.skoop.model.packet import Packet, Protocol, TcpFlags
from tasks.skoop.model.state import NftTable, Tuple

BENCH = "bench"
"""The namespace where the other ends of unpaired devices are."""
FILTERS = ("iptables", "ip6tables", "iptables-nft", "ip6tables-nft")
PORT_FLAGS = {"hairpin": ("hairpin", "on"), "isolated": ("isolated", "on"), "noflood": ("flood", "off")}
PORT_FLAGS |= {"nolearning": ("learning", "off")}
EXPECT = "expect minimal"
ADDRESS_FLAGS = {"deprecated": "preferred_lft 0"}
_SETTINGS = ("up", "down", "noarp", "mtu", "master", "group", "state")
STATES = {"listening": 1, "learning": 2}
"""States that a bridge's port keeps which somebody sets by hand, where the bridge runs no spanning tree."""
_KINDS = ("bridge", "vxlan", "dummy", "macvlan")
_FLAGS = {"syn": TcpFlags.SYN, "synack": TcpFlags.SYN_ACK, "ack": TcpFlags.ACK, "rst": TcpFlags.RST}


class ScenarioError(Exception):
    """A scenario file has a line that cannot be read."""

    def __init__(self, source: str, number: int, problem: str) -> None:
        super().__init__(f"{source}:{number}: {problem}")


@dataclass(slots=True, kw_only=True)
class Device:
    """One device of a namespace. `peer` is the other end of a veth; `words` are options of its kind."""

    name: str
    kind: str
    index: int
    mac: Mac
    up: bool = True
    mtu: int = 0
    master: str = ""
    noarp: bool = False
    addresses: list[str] = field(default_factory=list)
    flags: dict[str, str] = field(default_factory=dict)
    """Flag of an address: deprecated."""
    group: int = 0
    state: str = ""
    port_flags: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    peer: tuple[str, str] | None = None

    def lower(self) -> tuple[str, str] | None:
        """Return (namespace, device) that a macvlan stands on."""
        netns, _, name = self.word("on").partition(":")
        return (netns, name) if netns else None

    def word(self, name: str, default: str = "") -> str:
        """Return the value after an option's name."""
        return self.words[self.words.index(name) + 1] if name in self.words else default


@dataclass(frozen=True, slots=True, kw_only=True)
class Listen:
    """A server: `full` is one whose accept queue is full."""

    protocol: str
    port: int
    address: str = ""
    dev: str = ""
    v6only: bool = False
    full: bool = False
    transparent: bool = False
    shared: bool = False

    def binds(self, *, six: bool) -> list[tuple[str, bool]]:
        """Return what it binds: (address, only IPv6), one for both families with TCP, one for each with UDP."""
        if self.address:
            return [(self.address, self.v6only)]
        if not six:
            return [("0.0.0.0", False)]
        return [("::", self.v6only)] if self.protocol == "tcp" else [("0.0.0.0", False), ("::", True)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracked:
    """A connection that conntrack knows from before."""

    protocol: Protocol
    original: Tuple
    reply: Tuple
    replied: bool = True
    assured: bool = False
    zone: int = 0
    mark: int = 0


@dataclass(slots=True, kw_only=True)
class Space:
    """One network namespace of a scenario; lines of routes, rules, neighbours and fdb are kept as words."""

    name: str
    devices: dict[str, Device] = field(default_factory=dict)
    nexthops: list[list[str]] = field(default_factory=list)
    routes: list[list[str]] = field(default_factory=list)
    rules: list[list[str]] = field(default_factory=list)
    neighbours: list[list[str]] = field(default_factory=list)
    fdb: list[list[str]] = field(default_factory=list)
    sysctls: list[tuple[str, str]] = field(default_factory=list)
    filters: dict[str, list[list[str]]] = field(default_factory=dict)
    ipsets: list[list[str]] = field(default_factory=list)
    nft: list[str] = field(default_factory=list)
    nft_listed: tuple[NftTable, ...] = ()
    """What the `nft` lines make, as listed."""
    tracked: list[Tracked] = field(default_factory=list)
    listeners: list[Listen] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Connect:
    """A program in `netns` connects (TCP), or sends one datagram and waits for the answer (UDP, ICMP)."""

    netns: str
    protocol: Protocol
    dst: Ip
    dport: int = 0
    sport: int = 0
    uid: int = 0
    payload: int = 0
    df: bool = False
    times: int = 1
    tos: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Inject:
    """A packet comes in on a device from the bench."""

    netns: str
    dev: str
    packet: Packet


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One thing that is tried: its line (from 0) in the file, and the lines that are expected of it."""

    number: int
    what: Connect | Inject
    expected: tuple[str, ...] | None = None


@dataclass(slots=True, kw_only=True)
class Scenario:
    """A whole file."""

    name: str
    title: str = ""
    spaces: dict[str, Space] = field(default_factory=dict)
    trials: list[Trial] = field(default_factory=list)
    six: bool = False
    """Whether any address is IPv6; else the family is switched off, which keeps the tests quiet."""

    def device(self, netns: str, name: str) -> Device:
        """Return a device; made, as the end of a veth on the bench, where nothing was said of it before."""
        space = self.spaces[netns]
        if name not in space.devices:
            bench = self.spaces[BENCH]
            end = f"{netns}.{name}"
            bench.devices[end] = self._make(BENCH, end, "veth")
            bench.devices[end].peer = (netns, name)
            self.add(netns, name, "veth").peer = (BENCH, end)
        return space.devices[name]

    def add_space(self, name: str) -> None:
        """Add a namespace, with its lo."""
        if name not in self.spaces:
            lo = Device(name="lo", kind="loopback", index=1, mac=Mac("00:00:00:00:00:00"))
            self.spaces[name] = Space(name=name, devices={"lo": lo})

    def add(self, netns: str, name: str, kind: str) -> Device:
        """Add a device to a namespace."""
        made = self.spaces[netns].devices[name] = self._make(netns, name, kind)
        return made

    def _make(self, netns: str, name: str, kind: str) -> Device:
        index = 1 + len(self.spaces[netns].devices)
        place = 0xFF if netns == BENCH else list(self.spaces).index(netns)
        return Device(name=name, kind=kind, index=index, mac=Mac(f"02:00:00:00:{place:02x}:{index:02x}"))


def load(path: Path) -> Scenario:
    """Return the scenario of a file. Raises ScenarioError."""
    scenario = parse(path.read_text(), f"{path.parent.name}/{path.stem}")
    if any(space.nft for space in scenario.spaces.values()):
        listed = msgspec.json.decode(listing_of(path).read_bytes(), type=dict[str, tuple[NftTable, ...]])
        for name, tables in listed.items():
            scenario.spaces[name].nft_listed = tables
    return scenario


def listing_of(path: Path) -> Path:
    """Return where the tables are that the file's `nft` lines make."""
    return path.with_suffix(".nft.json")


def parse(text: str, name: str) -> Scenario:
    """Return the scenario of a text. Raises ScenarioError."""
    return _Reader(text, name).read()


def words_of(line: str) -> list[str]:
    """Return the words of a line without its remark."""
    return shlex.split(line, comments=True)


class _Reader:
    def __init__(self, text: str, name: str) -> None:
        self.lines = text.splitlines()
        body = "\n".join(line for line in self.lines if not line.lstrip().startswith("#"))
        self.scenario = Scenario(name=name, six="::" in body)
        self.space: Space | None = None

    def read(self) -> Scenario:
        remarks = [line[1:].strip() for line in self.lines if line.startswith("#")]
        self.scenario.title = " ".join(remarks)
        self.scenario.add_space(BENCH)
        for _, words in self._content():  # ends of veths must be known before anything is said of them
            if words[0] == "netns":
                self.scenario.add_space(words[1])
        netns = ""
        for number, words in self._content():  # and so must devices be before a MAC of theirs is asked for
            if words[0] == "netns":
                netns = words[1]
            elif words[0] == "veth":
                self._checked(number, self._veth, words[1:])
            elif words[0] in _KINDS:
                self._checked(number, self._own_device, netns, words)
        expecting: list[str] | None = None
        for number, line in enumerate(self.lines):
            words = words_of(line)
            if line.strip() == EXPECT:
                expecting = []
                self._expect(expecting)
            elif expecting is not None and line[:1] in (" ", "\t"):
                expecting.append(line.strip())
                self._expect(expecting)
            elif words:
                expecting = None
                if words[0] == "nft" and self.space is not None:
                    self.space.nft.append(line.strip().removeprefix("nft").strip())
                elif words[0] not in ("veth", *_KINDS):
                    self._checked(number, self._line, words, number)
        return self.scenario

    def _content(self) -> Iterator[tuple[int, list[str]]]:
        for number, line in enumerate(self.lines):
            if words := words_of(line):
                yield number, words

    def _checked(self, number: int, do: object, *args: object) -> None:
        try:
            do(*args)  # type: ignore[operator]
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise ScenarioError(self.scenario.name, number + 1, f"{self.lines[number].strip()!r}: {error!r}") from error

    def _expect(self, lines: Sequence[str]) -> None:
        last = self.scenario.trials[-1]
        self.scenario.trials[-1] = Trial(number=last.number, what=last.what, expected=tuple(lines))

    def _line(self, words: list[str], number: int) -> None:
        match words[0]:
            case "netns":
                self.space = self.scenario.spaces[words[1]]
            case "connect":
                self.scenario.trials.append(Trial(number=number, what=_connect(words[1:])))
            case "packet":
                self.scenario.trials.append(Trial(number=number, what=self._packet(words[1:])))
            case keyword:
                if self.space is None:
                    raise ValueError("this stands before any netns")
                self._setting(self.space, keyword, [self._meant(word) for word in words[1:]])

    def _meant(self, word: str) -> str:
        """Return a word with `@netns:dev` replaced by that device's MAC."""
        if not word.startswith("@") or ":" not in word:
            return word
        netns, dev = word[1:].split(":")
        return self.scenario.device(netns, dev).mac

    def _setting(self, space: Space, keyword: str, words: list[str]) -> None:
        match keyword:
            case "link":
                self._links(space, words)
            case "nexthop":
                space.nexthops.append(words)
            case "route":
                space.routes.append(words)
            case "rule":
                space.rules.append(words)
            case "neigh":
                space.neighbours.append(words)
            case "fdb":
                space.fdb.append(words)
            case "ipset":
                space.ipsets.append(words)
            case "conntrack":
                space.tracked.append(_tracked(words))
            case "sysctl":
                key, _, value = words[0].partition("=")
                space.sysctls.append((_slashed(key), value))
            case "listen":
                space.listeners.append(_listen(words))
            case _ if keyword in FILTERS:
                space.filters.setdefault(keyword, []).append(words)
            case _:
                raise ValueError(f"no such line: {keyword}")

    def _own_device(self, netns: str, words: list[str]) -> None:
        self.scenario.add(netns, words[1], words[0]).words = words[2:]

    def _veth(self, words: list[str]) -> None:
        ends = [(netns, dev) for netns, dev in (word.split(":") for word in words)]
        for (netns, dev), other in zip(ends, reversed(ends), strict=True):
            self.scenario.add(netns, dev, "veth").peer = other

    def _links(self, space: Space, words: list[str]) -> None:
        device: Device | None = None
        rest = iter(words)
        for word in rest:
            if device is None or not _is_setting(word):
                device = self.scenario.device(space.name, word)
            elif "/" in word:
                device.addresses.append(word)
            elif word in ("up", "down"):
                device.up = word == "up"
            elif word == "noarp":
                device.noarp = True
            elif word == "mtu":
                device.mtu = int(next(rest))
            elif word == "master":
                device.master = next(rest)
            elif word == "state":
                device.state = next(rest)
            elif word == "group":
                device.group = int(next(rest))
            elif word in ADDRESS_FLAGS:
                device.flags[device.addresses[-1]] = word
            else:
                device.port_flags.append(word)

    def _packet(self, words: list[str]) -> Inject:
        place = words[0].removeprefix("in=")
        names = [name for name in self.scenario.spaces if name != BENCH]
        if ":" not in place and len(names) > 1:
            raise ValueError("of which netns is the device? write in=NETNS:DEVICE")
        netns, dev = place.split(":") if ":" in place else (names[0], place)
        return Inject(netns=netns, dev=dev, packet=_packet(words[1:]))


def _is_setting(word: str) -> bool:
    return "/" in word or word in _SETTINGS or word in PORT_FLAGS or word in ADDRESS_FLAGS


def _slashed(key: str) -> str:
    """`net.ipv4.conf.flannel/1.rp_filter`, or with slashes already (as sysctl(8): then dots are dots)."""
    if key.find("/") >= 0 and (key.find(".") < 0 or key.find("/") < key.find(".")):
        return key
    return key.translate(str.maketrans("./", "/."))


def _listen(words: list[str]) -> Listen:
    protocol, port, *rest = words
    dev = rest[rest.index("dev") + 1] if "dev" in rest else ""
    plain = [word for word in rest if word not in ("dev", dev, "v6only", "full", "shared", "transparent")]
    return Listen(
        protocol=protocol,
        port=int(port),
        address=plain[0] if plain else "",
        dev=dev,
        v6only="v6only" in rest,
        full="full" in rest,
        transparent="transparent" in rest,
        shared="shared" in rest,
    )


def end_of(text: str) -> tuple[Ip, int]:
    """Return address and port of `10.0.0.1:80`, `[fd00::1]:80`, or an address alone."""
    if text.startswith("["):
        ip, _, port = text[1:].partition("]:")
        return Ip(ip), int(port)
    ip, _, port = text.partition(":") if text.count(":") == 1 else (text, "", "0")
    return Ip(ip), int(port)


def _connect(words: list[str]) -> Connect:
    netns, protocol, to, *rest = words
    dst, dport = end_of(to)
    names = ("sport", "uid", "payload", "times", "tos")
    numbers = {name: _number(rest, name, 0) for name in names if name in rest}
    return Connect(netns=netns, protocol=Protocol(protocol), dst=dst, dport=dport, df="df" in rest, **numbers)


def _tracked(words: list[str]) -> Tracked:
    """`udp A:p > B:q reply B:q > A:p [unreplied] [assured] [zone N] [mark N]`."""
    ends = [end_of(words[at]) for at in (1, 3, 5, 7)]
    (src, sport), (dst, dport), (back, back_port), (to, to_port) = ends
    rest = words[8:]
    return Tracked(
        protocol=Protocol(words[0]),
        original=Tuple(src, dst, sport, dport),
        reply=Tuple(back, to, back_port, to_port),
        replied="unreplied" not in rest,
        assured="assured" in rest,
        zone=_number(rest, "zone", 0),
        mark=_number(rest, "mark", 0),
    )


def _packet(words: list[str]) -> Packet:
    """`tcp A:p > B:q [syn|synack|ack|rst] [ttl N] [len N] [df]`, `icmp A > B [T/C] [mtu N] [about …]`."""
    protocol = Protocol(words[0])
    (src, sport), (dst, dport) = end_of(words[1]), end_of(words[3])
    rest = words[4:]
    about = rest.index("about") if "about" in rest else len(rest)
    inner = _packet(rest[about + 1 :]) if about < len(rest) else None
    rest = rest[:about]
    six = ":" in dst
    icmp = protocol in (Protocol.ICMP, Protocol.ICMPV6)
    kind, code = next((word.split("/") for word in rest if "/" in word), ("128" if six else "8", "0"))
    flags = next((_FLAGS[word] for word in rest if word in _FLAGS), TcpFlags.SYN)
    smallest = (40 if six else 20) + (inner.length + 8 if inner else 40)
    return Packet(
        src=src,
        dst=dst,
        protocol=protocol,
        sport=sport or (7 if icmp and inner is None else 0),
        dport=dport,
        ttl=_number(rest, "ttl", 64),
        length=_number(rest, "len", smallest),
        df="df" in rest,
        tos=_number(rest, "tos", 0),
        tcp_flags=flags if protocol == Protocol.TCP else TcpFlags.NONE,
        icmp_type=int(kind) if icmp else -1,
        icmp_code=int(code) if icmp else 0,
        icmp_mtu=_number(rest, "mtu", 0),
        inner=inner,
    )


def _number(words: list[str], name: str, default: int) -> int:
    return int(words[words.index(name) + 1], 0) if name in words else default
