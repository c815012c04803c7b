"""Neighbours, fdb, sockets, conntrack, sysctls, ipsets, IPVS: lines as the tools print them."""

import pytest

from tasks.skoop.model.addr import Ip, Mac
from tasks.skoop.model.packet import Protocol
from tasks.skoop.model.state import (
    ConntrackEntry,
    FdbEntry,
    IpSet,
    IpSetEntry,
    IpvsDestination,
    IpvsService,
    Neighbour,
    NeighbourState,
    Socket,
    Tuple,
)
from tasks.skoop.parse.conntrack import parse_conntrack
from tasks.skoop.parse.errors import ParseError
from tasks.skoop.parse.ipset import parse_ipset_save
from tasks.skoop.parse.ipvs import parse_ipvsadm
from tasks.skoop.parse.neighbours import parse_fdb, parse_neighbours
from tasks.skoop.parse.sockets import parse_sockets
from tasks.skoop.parse.sysctl import decides, parse_sysctl


@pytest.mark.parametrize(
    ("text", "neighbour"),
    [
        pytest.param(
            '{"dst":"10.0.0.78","dev":"d0","lladdr":"02:02:02:02:02:0A","router":null,"state":["PERMANENT"]}',
            Neighbour(
                ip=Ip("10.0.0.78"), dev="d0", mac=Mac("02:02:02:02:02:0a"), state=NeighbourState.PERMANENT, router=True
            ),
            id="permanent router",
        ),
        pytest.param(
            '{"dst":"10.0.0.77","dev":"d0","proxy":null}',
            Neighbour(ip=Ip("10.0.0.77"), dev="d0", proxy=True),
            id="proxy",
        ),
        pytest.param(
            '{"dst":"172.18.0.200","dev":"eth0","state":["FAILED"]}',
            Neighbour(ip=Ip("172.18.0.200"), dev="eth0", state=NeighbourState.FAILED),
            id="failed",
        ),
    ],
)
def test_neighbours(text: str, neighbour: Neighbour) -> None:
    assert parse_neighbours(f"[{text}]") == (neighbour,)


MAC = Mac("9a:7c:10:24:40:03")


@pytest.mark.parametrize(
    ("text", "entry"),
    [
        pytest.param(
            '"ifname":"flannel.1","dst":"172.18.0.13","flags":["self"],"state":"permanent"',
            FdbEntry(mac=MAC, dev="flannel.1", dst=Ip("172.18.0.13"), permanent=True),
            id="of a vxlan",
        ),
        pytest.param(
            '"ifname":"vx","dst":"10.0.0.44","port":99,"vni":7,"viaIf":"d0","flags":["self"],"state":"static"',
            FdbEntry(mac=MAC, dev="vx", dst=Ip("10.0.0.44"), port=99, vni=7, static=True),
            id="with port and VNI",
        ),
        pytest.param(
            '"ifname":"veth1","flags":[],"master":"cni0","state":""',
            FdbEntry(mac=MAC, dev="veth1", master="cni0"),
            id="learned",
        ),
        pytest.param(
            '"ifname":"veth1","vlan":1,"flags":["sticky"],"master":"cni0","state":"static"',
            FdbEntry(mac=MAC, dev="veth1", master="cni0", vlan=1, static=True, sticky=True),
            id="static and sticky in a VLAN",
        ),
    ],
)
def test_fdb(text: str, entry: FdbEntry) -> None:
    assert parse_fdb(f'[{{"mac":"9A:7C:10:24:40:03",{text}}}]') == (entry,)


TCP, UDP = Protocol.TCP, Protocol.UDP
SOCKETS = [
    pytest.param(
        "udp UNCONN 0      0        0.0.0.0:8472  0.0.0.0:*      ",
        Socket(protocol=UDP, ip=Ip("0.0.0.0"), port=8472, state="UNCONN"),
        id="vxlan's port",
    ),
    pytest.param(
        'tcp LISTEN 3 4096 127.0.0.1:10249 0.0.0.0:* users:(("kube-proxy",pid=7236,fd=7),("kube-proxy",pid=1,fd=2))',
        Socket(protocol=TCP, ip=Ip("127.0.0.1"), port=10249, recv_queue=3, backlog=4096, process="kube-proxy"),
        id="listener with its process",
    ),
    pytest.param("LISTEN 0 128 *:80 *:*", Socket(protocol=TCP, ip=Ip("::"), port=80, backlog=128), id="both families"),
    pytest.param(
        "tcp LISTEN 0 128 [::]:80 [::]:*",
        Socket(protocol=TCP, ip=Ip("::"), port=80, v6only=True, backlog=128),
        id="v6 only",
    ),
    pytest.param(
        "udp UNCONN 0 0 127.0.0.53%lo:53 0.0.0.0:*",
        Socket(protocol=UDP, ip=Ip("127.0.0.53"), port=53, dev="lo", state="UNCONN"),
        id="bound to a device",
    ),
    pytest.param(
        "udp UNCONN 0 0 [fe80::1]%eth0:546 [::]:*",
        Socket(protocol=UDP, ip=Ip("fe80::1"), port=546, dev="eth0", state="UNCONN"),
        id="IPv6 on a device",
    ),
    pytest.param(
        "ESTAB 0 7 [::ffff:10.244.2.1]:10256 [::ffff:10.244.1.0]:40428",
        Socket(protocol=TCP, ip=Ip("10.244.2.1"), port=10256, state="ESTAB", peer=Ip("10.244.1.0"), peer_port=40428),
        id="IPv4 in an IPv6 socket",
    ),
    pytest.param(
        "raw UNCONN 0 0 *:58 *:*", Socket(protocol=Protocol.ICMPV6, ip=Ip("::"), port=0, state="UNCONN"), id="raw"
    ),
]


@pytest.mark.parametrize(("line", "socket"), SOCKETS)
def test_sockets(line: str, socket: Socket) -> None:
    assert parse_sockets(f"{line}\nu_str LISTEN 0 5 /run/x 123 * 0\n\n") == (socket,)


CONNTRACK = [
    pytest.param(
        "tcp      6 113 TIME_WAIT src=10.244.1.5 dst=172.18.0.13 sport=43762 dport=30080 src=172.18.0.13 dst=172.18.0.11 "
        "sport=30080 dport=27333 [ASSURED] mark=5 use=1",
        ConntrackEntry(
            protocol=TCP,
            original=Tuple(Ip("10.244.1.5"), Ip("172.18.0.13"), 43762, 30080),
            reply=Tuple(Ip("172.18.0.13"), Ip("172.18.0.11"), 30080, 27333),
            state="TIME_WAIT",
            assured=True,
            mark=5,
            timeout_s=113,
        ),
        id="tcp with SNAT",
    ),
    pytest.param(
        "ipv4     2 udp      17 23 src=10.0.0.1 dst=10.0.0.2 sport=1 dport=8472 packets=1 bytes=2 [UNREPLIED] src=10.0.0.2 "
        "dst=10.0.0.1 sport=8472 dport=1 packets=0 bytes=0 mark=0 zone=3 use=1",
        ConntrackEntry(
            protocol=UDP,
            original=Tuple(Ip("10.0.0.1"), Ip("10.0.0.2"), 1, 8472),
            reply=Tuple(Ip("10.0.0.2"), Ip("10.0.0.1"), 8472, 1),
            replied=False,
            zone=3,
            timeout_s=23,
        ),
        id="extended form, counters, zone",
    ),
    pytest.param(
        "icmp     1 29 src=10.0.0.1 dst=10.0.0.2 type=8 code=0 id=77 src=10.0.0.2 dst=10.0.0.1 type=0 code=0 id=77 mark=0 use=1",
        ConntrackEntry(
            protocol=Protocol.ICMP,
            original=Tuple(Ip("10.0.0.1"), Ip("10.0.0.2"), 77, 77),
            reply=Tuple(Ip("10.0.0.2"), Ip("10.0.0.1"), 77, 77),
            timeout_s=29,
        ),
        id="echo",
    ),
    pytest.param(
        "tcp      6 src=fd00::1 dst=fd00::2 sport=1 dport=2 src=fd00::2 dst=fd00::1 sport=2 dport=1 [OFFLOAD] mark=0 use=2",
        ConntrackEntry(
            protocol=TCP,
            original=Tuple(Ip("fd00::1"), Ip("fd00::2"), 1, 2),
            reply=Tuple(Ip("fd00::2"), Ip("fd00::1"), 2, 1),
        ),
        id="offloaded: no timeout, no state",
    ),
]


@pytest.mark.parametrize(("line", "entry"), CONNTRACK)
def test_conntrack(line: str, entry: ConntrackEntry) -> None:
    assert parse_conntrack(f"{line}\nconntrack v1.4.8 (conntrack-tools): 1 flow entries have been shown.\n") == (entry,)


@pytest.mark.parametrize("line", [case.values[0] for case in CONNTRACK])
def test_half_a_connection_is_an_error(line: str) -> None:
    for cut in range(8, len(line) - len("use=1"), 7):
        with pytest.raises(ParseError, match=r"conntrack-L\.txt:2:1"):
            parse_conntrack(f"{line}\n{line[:cut]}")


def test_sysctls_that_decide_by_their_path() -> None:
    text = (
        "net.ipv4.conf.flannel/1.rp_filter = 2\nnet.ipv4.ip_forward = 1\nnet.ipv4.ip_local_port_range = 32768\t60999\n"
        "net/ipv6/conf/eth0.5/forwarding = 0\nnet.ipv4.tcp_fastopen_key = 1-2-3-4\nnet.ipv4.conf.all.tag = 0\n"
        "net.bridge.bridge-nf-call-iptables = 1\nnet.core.rmem_max=5\nnet.ipv4.ip_local_reserved_ports = \n"
    )
    assert parse_sysctl(text) == {
        "net/ipv4/conf/flannel.1/rp_filter": "2",
        "net/ipv4/ip_forward": "1",
        "net/ipv4/ip_local_port_range": "32768\t60999",
        "net/ipv6/conf/eth0.5/forwarding": "0",
        "net/bridge/bridge-nf-call-iptables": "1",
        "net/ipv4/ip_local_reserved_ports": "",
    }
    assert not decides("net/ipv4/conf/rp_filter")


def test_ipsets() -> None:
    text = (
        "create kr:pods hash:net family inet hashsize 1024 maxelem 65536 timeout 0 bucketsize 12 initval 0x8c48\n"
        "create six hash:ip,port family inet6 hashsize 64 maxelem 9\ncreate ports bitmap:port range 0-100\n"
        'add kr:pods 10.0.0.0/8 timeout 0\nadd kr:pods 10.1.0.0/16 nomatch\nadd six fd00::1,tcp:80 comment "x"\n'
        "create all list:set size 8\nadd all six\n"
    )
    assert parse_ipset_save(text) == (
        IpSet(
            name="kr:pods", type="hash:net", entries=(IpSetEntry("10.0.0.0/8"), IpSetEntry("10.1.0.0/16", nomatch=True))
        ),
        IpSet(name="six", type="hash:ip,port", family=6, entries=(IpSetEntry("fd00::1,tcp:80"),)),
        IpSet(name="ports", type="bitmap:port", family=0),
        IpSet(name="all", type="list:set", family=0, entries=(IpSetEntry("six"),)),
    )


def test_masks_wildcards_and_comments_of_ipsets() -> None:
    text = (
        "create a hash:ip family inet hashsize 1024 maxelem 65536 netmask 24 bucketsize 12 initval 0xb7\nadd a 10.1.2.0\n"
        "create b hash:ip family inet hashsize 1024 maxelem 65536 bitmask 255.0.255.0\n"
        "create c hash:ip,mark family inet markmask 0x000000ff hashsize 1024\n"
        "create d hash:net,iface family inet hashsize 1024 maxelem 65536 comment\n"
        'add d 10.0.0.0/8,eth wildcard comment "no nomatch here"\nadd d 11.0.0.0/8,physdev:veth0 timeout 9 nomatch\n'
    )
    assert parse_ipset_save(text) == (
        IpSet(name="a", type="hash:ip", netmask="24", entries=(IpSetEntry("10.1.2.0"),)),
        IpSet(name="b", type="hash:ip", netmask="255.0.255.0"),
        IpSet(name="c", type="hash:ip,mark", markmask=0xFF),
        IpSet(
            name="d",
            type="hash:net,iface",
            entries=(IpSetEntry("10.0.0.0/8,eth wildcard"), IpSetEntry("11.0.0.0/8,physdev:veth0", nomatch=True)),
        ),
    )


LIST = """Name: nets
Type: hash:net
Revision: 7
Header: family inet6 hashsize 1024 maxelem 65536 timeout 100
Size in memory: 736
References: 0
Number of entries: 2
Members:
fd00::/64 timeout 19 nomatch
fd01::/64 timeout 19

Name: all
Type: list:set
Header: size 8
Number of entries: 1
Members:
nets
"""


def test_what_ipset_list_prints() -> None:
    nets = (IpSetEntry("fd00::/64", nomatch=True), IpSetEntry("fd01::/64"))
    assert parse_ipset_save(LIST) == (
        IpSet(name="nets", type="hash:net", family=6, entries=nets),
        IpSet(name="all", type="list:set", family=0, entries=(IpSetEntry("nets"),)),
    )


IPVS_LIST = """IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn
TCP  10.0.0.1:443 rr persistent 10800 mask 255.255.0.0
  -> 192.168.0.1:6443             Masq    1      1          0
UDP  [fd00::a]:53 wlc ops
  -> [fd00::1]:53                 Route   0      1          0
FWM  7 IPv6 sh
"""


def test_what_ipvsadm_lists() -> None:
    assert parse_ipvsadm(IPVS_LIST) == (
        IpvsService(
            ip=Ip("10.0.0.1"),
            port=443,
            persistent_s=10800,
            netmask="255.255.0.0",
            destinations=(IpvsDestination(Ip("192.168.0.1"), 6443),),
        ),
        IpvsService(
            protocol=Protocol.UDP,
            ip=Ip("fd00::a"),
            port=53,
            scheduler="wlc",
            flags=("ops",),
            destinations=(IpvsDestination(Ip("fd00::1"), 53, "route", 0),),
        ),
        IpvsService(fwmark=7, family=6, scheduler="sh"),
    )
    with pytest.raises(ParseError, match=r"^dump:5:1: "):
        parse_ipvsadm(IPVS_LIST.replace("192.168.0.1:6443", "192.168.0.1"), "dump")


@pytest.mark.parametrize("lines", [4, 8, 9, 15])
def test_half_an_ipset_list_is_refused(lines: int) -> None:
    with pytest.raises(ParseError, match="cut short"):
        parse_ipset_save("\n".join(LIST.splitlines()[:lines]))


def test_ipvs() -> None:
    text = (
        "-A -t 10.96.0.1:443 -s rr -p 10800\n-a -t 10.96.0.1:443 -r 192.168.0.1:6443 -m -w 1\n"
        "-A -u [fd00::a]:53 -s wlc\n-a -u [fd00::a]:53 -r [fd00::1]:53 -g -w 0\n-A -f 7 -s sh\n-a -f 7 -r 10.0.0.1:0 -i -w 2\n"
    )
    assert parse_ipvsadm(text) == (
        IpvsService(
            ip=Ip("10.96.0.1"),
            port=443,
            persistent_s=10800,
            destinations=(IpvsDestination(Ip("192.168.0.1"), 6443),),
        ),
        IpvsService(
            protocol=UDP,
            ip=Ip("fd00::a"),
            port=53,
            scheduler="wlc",
            destinations=(IpvsDestination(Ip("fd00::1"), 53, "route", 0),),
        ),
        IpvsService(fwmark=7, scheduler="sh", destinations=(IpvsDestination(Ip("10.0.0.1"), 0, "tunnel", 2),)),
    )


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        pytest.param(parse_sockets, "tcp LISTEN 0 128 *:80 *:*\ntcp LISTEN 0 12", id="half a socket"),
        pytest.param(parse_sockets, "tcp LISTEN 0 128 *:80 *:*\nLISTEN 0 5 300.1.1.1:80 *:*", id="address"),
        pytest.param(parse_sysctl, "net.a.b = 1\nnet.ipv4.ip_for", id="half a setting"),
        pytest.param(parse_ipset_save, "create a hash:ip\nadd b 10.0.0.1", id="element of no set"),
        pytest.param(parse_ipset_save, "create a hash:ip\nName: KUBE", id="ipset list in ipset save"),
        pytest.param(
            parse_ipvsadm, "-A -t 10.0.0.1:80 -s rr\n-a -t 10.0.0.2:80 -r 10.0.0.1:1 -m", id="server of no service"
        ),
        pytest.param(parse_ipvsadm, "-A -t 10.0.0.1:80 -s rr\nTCP  10.0.0.1:443 rr", id="ipvsadm -ln, not -Sn"),
        pytest.param(parse_ipvsadm, "-A -t 10.0.0.1:80 -s rr\n-A -t 10.0.0.1:80 -s rr", id="service twice"),
    ],
)
def test_refuses_the_second_line(parse: object, text: str) -> None:
    with pytest.raises(ParseError, match=r"^dump:2:1: "):
        parse(text, "dump")  # type: ignore[operator]
