"""What is broken, set or exchanged before the kernel is asked: named cases, and random mixtures of the same ingredients.

A case is a list of shell commands for nodes of a lab of two nodes in IPVS mode (`world`); the world is put back between cases.
`{v4}`/`{v6}` families are both programmed; addresses are those of `lab.plan`.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

WEB, API, DB, ORPHAN, ECHO, STICKY = (f"10.96.10.{n}" for n in (1, 4, 7, 6, 15, 5))
WEB6, ECHO6 = "fd00:10:96::a01", "fd00:10:96::a0f"
WEB_1, WEB_2, API_1, API_2, DB_1 = "10.244.1.4", "10.244.2.4", "10.244.1.5", "10.244.2.5", "10.244.2.7"
ADDED = "10.96.77.7"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """`commands` are (node, shell command), run in order in that node's network namespace."""

    name: str
    commands: tuple[tuple[str, str], ...] = ()


def _on(node: str, *commands: str) -> tuple[tuple[str, str], ...]:
    return tuple((node, command) for command in commands)


def _both(*commands: str) -> tuple[tuple[str, str], ...]:
    return (*_on("n1", *commands), *_on("n2", *commands))


def _sysctl(name: str, value: int) -> str:
    return f"echo {value} > /proc/sys/net/{name}"


def _only(vip: str, server: str, *, options: str = "-m", port: int = 80, to: int = 8080, scheduler: str = "rr") -> str:
    """Give a virtual server one real server and nothing else."""
    return f"ipvsadm -D -t {vip}:{port}; ipvsadm -A -t {vip}:{port} -s {scheduler}; ipvsadm -a -t {vip}:{port} -r {server}:{to} {options}"


# A request of the node's own carries the virtual address, and so does its ARP request, which a pod with that address does not
# answer: whether it gets there hangs on who has asked before. With a permanent entry it does not.
KNOWN_WEB_1 = f"ip neigh replace {WEB_1} lladdr 0a:58:0a:f4:01:04 dev cni0 nud permanent"
DEFENSE_TIMER = "sleep 1.1"
"""IPVS looks at drop_packet and drop_entry once a second (DEFENSE_TIMER_PERIOD)."""
NO_MASQUERADE = "iptables-legacy -t nat -F KUBE-MARK-MASQ; ip6tables-legacy -t nat -F KUBE-MARK-MASQ"

NAMED: tuple[Case, ...] = (
    Case(name="as kube-proxy leaves it"),
    Case(name="vs.conntrack=0", commands=_both(_sysctl("ipv4/vs/conntrack", 0))),
    Case(name="no masquerade", commands=_both(NO_MASQUERADE)),
    Case(name="no masquerade, vs.conntrack=0", commands=_both(NO_MASQUERADE, _sysctl("ipv4/vs/conntrack", 0))),
    Case(
        name="no netfilter rule at all",
        commands=_both(*(f"{tool}-legacy-restore < /run/empty" for tool in ("iptables", "ip6tables"))),
    ),
    Case(
        name="no rule, vs.conntrack=0",
        commands=_both(
            *(f"{tool}-legacy-restore < /run/empty" for tool in ("iptables", "ip6tables")),
            _sysctl("ipv4/vs/conntrack", 0),
        ),
    ),
    Case(
        name="weight 0", commands=_on("n1", *(f"ipvsadm -e -t {WEB}:80 -r {ip}:8080 -m -w 0" for ip in (WEB_1, WEB_2)))
    ),
    Case(name="one of two at weight 0", commands=_on("n1", f"ipvsadm -e -t {WEB}:80 -r {WEB_1}:8080 -m -w 0")),
    Case(name="no real server", commands=_on("n1", f"ipvsadm -D -t {WEB}:80; ipvsadm -A -t {WEB}:80 -s rr")),
    Case(name="no virtual server", commands=_on("n1", f"ipvsadm -D -t {WEB}:80", f"ipvsadm -D -u {ECHO}:80")),
    Case(name="stale real server", commands=_on("n1", f"ipvsadm -a -t {WEB}:80 -r 10.244.2.99:8080 -m")),
    Case(name="only a stale real server", commands=_on("n1", _only(WEB, "10.244.1.99"))),
    Case(name="real server without listener", commands=_on("n1", _only(WEB, WEB_2, to=9999))),
    Case(name="real server without route", commands=_on("n1", _only(WEB, "10.250.0.1"), "ip route del default")),
    Case(
        name="real server blackholed",
        commands=_on("n1", _only(WEB, "10.250.0.1"), "ip route add blackhole 10.250.0.0/16"),
    ),
    Case(name="address missing from kube-ipvs0", commands=_on("n1", f"ip addr del {WEB}/32 dev kube-ipvs0")),
    Case(name="IPv6 address missing from kube-ipvs0", commands=_on("n1", f"ip addr del {WEB6}/128 dev kube-ipvs0")),
    Case(name="kube-ipvs0 gone", commands=_on("n1", "ip link del kube-ipvs0")),
    Case(
        name="FORWARD policy DROP",
        commands=_both("iptables-legacy -P FORWARD DROP", "ip6tables-legacy -P FORWARD DROP"),
    ),
    Case(
        name="FORWARD drops all",
        commands=_on("n1", "iptables-legacy -I FORWARD -j DROP", "ip6tables-legacy -I FORWARD -j DROP"),
    ),
    Case(name="INPUT drops the virtual address", commands=_on("n1", f"iptables-legacy -I INPUT -d {WEB} -j DROP")),
    Case(name="OUTPUT drops the real server", commands=_on("n1", f"iptables-legacy -I OUTPUT -d {WEB_2} -j DROP")),
    Case(name="OUTPUT drops the virtual address", commands=_on("n1", f"iptables-legacy -I OUTPUT -d {WEB} -j DROP")),
    Case(name="OUTPUT rejects the real server", commands=_on("n1", f"iptables-legacy -I OUTPUT -d {WEB_2} -j REJECT")),
    Case(
        name="mangle OUTPUT drops the virtual address",
        commands=_on("n1", f"iptables-legacy -t mangle -A OUTPUT -d {WEB} -j DROP"),
    ),
    Case(
        name="FORWARD drops INVALID",
        commands=_both("iptables-legacy -I FORWARD -m conntrack --ctstate INVALID -j DROP"),
    ),
    Case(
        name="FORWARD drops INVALID, vs.conntrack=0",
        commands=_both(
            "iptables-legacy -I FORWARD -m conntrack --ctstate INVALID -j DROP", _sysctl("ipv4/vs/conntrack", 0)
        ),
    ),
    Case(
        name="OUTPUT drops UNTRACKED",
        commands=_both("iptables-legacy -I OUTPUT -m conntrack --ctstate UNTRACKED -j DROP"),
    ),
    Case(
        name="OUTPUT drops UNTRACKED, vs.conntrack=0",
        commands=_both(
            "iptables-legacy -I OUTPUT -m conntrack --ctstate UNTRACKED -j DROP", _sysctl("ipv4/vs/conntrack", 0)
        ),
    ),
    Case(
        name="masquerade what --ctstate DNAT matches",
        commands=_both(
            NO_MASQUERADE, "iptables-legacy -t nat -A POSTROUTING -m conntrack --ctstate DNAT -j MASQUERADE"
        ),
    ),
    Case(name="POSTROUTING masquerades all", commands=_both("iptables-legacy -t nat -I POSTROUTING -j MASQUERADE")),
    Case(
        name="SNAT of what goes to real servers",
        commands=_on("n1", f"iptables-legacy -t nat -I POSTROUTING -d {WEB_2} -j SNAT --to 172.18.0.11"),
    ),
    Case(name="no hairpin masquerade", commands=_both("ipset flush KUBE-LOOP-BACK", "ipset flush KUBE-6-LOOP-BACK")),
    Case(name="ipset of cluster addresses empty", commands=_both("ipset flush KUBE-CLUSTER-IP")),
    Case(name="ip_forward=0", commands=_on("n1", _sysctl("ipv4/ip_forward", 0))),
    Case(name="IPv6 forwarding off", commands=_on("n1", _sysctl("ipv6/conf/all/forwarding", 0))),
    Case(name="rp_filter strict", commands=_both(_sysctl("ipv4/conf/all/rp_filter", 1))),
    Case(name="bridges do not call iptables", commands=_both(_sysctl("bridge/bridge-nf-call-iptables", 0))),
    Case(
        name="bridges do not call iptables, no masquerade",
        commands=_both(_sysctl("bridge/bridge-nf-call-iptables", 0), NO_MASQUERADE),
    ),
    Case(name="DR to a pod", commands=_on("n1", _only(WEB, WEB_1, options="-g", to=80))),
    Case(
        name="DR to a pod that has the address",
        commands=(
            *_on("n1", _only(WEB, WEB_1, options="-g", port=8080), NO_MASQUERADE, KNOWN_WEB_1),
            ("pod/shop/web-1", f"ip addr add {WEB}/32 dev lo"),
        ),
    ),
    Case(
        name="DR to a pod that has the address, vs.conntrack=0",
        commands=(
            *_on("n1", _only(WEB, WEB_1, options="-g", port=8080), _sysctl("ipv4/vs/conntrack", 0), KNOWN_WEB_1),
            ("pod/shop/web-1", f"ip addr add {WEB}/32 dev lo"),
        ),
    ),
    Case(name="real server is the node", commands=_on("n1", _only(WEB, "172.18.0.11", to=10250))),
    Case(
        name="real server is the node, vs.conntrack=0",
        commands=_on("n1", _only(WEB, "172.18.0.11", to=10250), _sysctl("ipv4/vs/conntrack", 0)),
    ),
    Case(name="real server is 127.0.0.1", commands=_on("n1", _only(WEB, "127.0.0.1", to=10250))),
    Case(name="DR to the node itself", commands=_on("n1", _only(WEB, "172.18.0.11", options="-g", port=10250))),
    Case(name="real server on the other node", commands=_on("n1", _only(WEB, "172.18.0.12", to=10250))),
    Case(name="real server outside", commands=_on("n1", _only(WEB, "172.18.0.100"))),
    Case(
        name="by mark",
        commands=_on(
            "n1",
            f"iptables-legacy -t mangle -A PREROUTING -d {ADDED} -p tcp -j MARK --set-mark 7",
            f"iptables-legacy -t mangle -A OUTPUT -d {ADDED} -p tcp -j MARK --set-mark 7",
            f"ip addr add {ADDED}/32 dev kube-ipvs0",
            "ipvsadm -A -f 7 -s rr",
            f"ipvsadm -a -f 7 -r {WEB_1}:8080 -m",
        ),
    ),
    Case(
        name="by mark, to an address that is not local",
        commands=_on(
            "n1",
            f"iptables-legacy -t mangle -A PREROUTING -d {ADDED} -p tcp -j MARK --set-mark 7",
            "ipvsadm -A -f 7 -s rr",
            f"ipvsadm -a -f 7 -r {WEB_2}:8080 -m",
        ),
    ),
    Case(
        name="by mark, without real server port",
        commands=_on(
            "n1",
            f"iptables-legacy -t mangle -A PREROUTING -d {ADDED} -p tcp -j MARK --set-mark 7",
            f"ip addr add {ADDED}/32 dev kube-ipvs0",
            "ipvsadm -A -f 7 -s rr",
            f"ipvsadm -a -f 7 -r {WEB_1}:0 -m",
        ),
    ),
    Case(
        name="any port, persistent",
        commands=_on(
            "n1",
            f"ip addr add {ADDED}/32 dev kube-ipvs0",
            f"ipvsadm -A -t {ADDED}:0 -s rr -p 60",
            f"ipvsadm -a -t {ADDED}:0 -r {WEB_2}:0 -m",
        ),
    ),
    Case(name="masked persistence", commands=_on("n1", f"ipvsadm -E -t {WEB}:80 -s rr -p 60 -M 255.255.255.0")),
    Case(
        name="source hash",
        commands=_both(f"ipvsadm -E -t {WEB}:80 -s sh", f"ipvsadm -E -t [{WEB6}]:80 -s sh"),
    ),
    Case(
        name="source hash with weights",
        commands=_both(
            f"ipvsadm -E -t {WEB}:80 -s sh",
            f"ipvsadm -e -t {WEB}:80 -r {WEB_1}:8080 -m -w 3",
            f"ipvsadm -a -t {WEB}:80 -r {API_1}:8080 -m -w 2",
        ),
    ),
    Case(
        name="source hash, one closed",
        commands=_both(f"ipvsadm -E -t {WEB}:80 -s sh", f"ipvsadm -e -t {WEB}:80 -r {WEB_1}:8080 -m -w 0"),
    ),
    Case(
        name="source hash with fallback, one closed",
        commands=_both(
            f"ipvsadm -E -t {WEB}:80 -s sh -b sh-fallback", f"ipvsadm -e -t {WEB}:80 -r {WEB_1}:8080 -m -w 0"
        ),
    ),
    Case(name="destination hash", commands=_both(f"ipvsadm -E -t {WEB}:80 -s dh")),
    *(
        Case(name=f"scheduler {name}", commands=_both(f"ipvsadm -E -t {WEB}:80 -s {name}"))
        for name in ("wrr", "lc", "wlc", "sed", "nq", "lblc", "lblcr", "mh", "fo", "ovf")
    ),
    Case(
        name="weights 3 to 1, wrr",
        commands=_both(f"ipvsadm -E -t {WEB}:80 -s wrr", f"ipvsadm -e -t {WEB}:80 -r {WEB_1}:8080 -m -w 3"),
    ),
    Case(
        name="highest weight first",
        commands=_both(f"ipvsadm -E -t {WEB}:80 -s fo", f"ipvsadm -e -t {WEB}:80 -r {WEB_2}:8080 -m -w 5"),
    ),
    Case(name="one packet", commands=_on("n1", f"ipvsadm -E -u {ECHO}:80 -s rr -o")),
    Case(name="snat_reroute=0", commands=_both(_sysctl("ipv4/vs/snat_reroute", 0))),
    Case(
        name="replies of the virtual address routed elsewhere",
        commands=_on("n1", f"ip rule add from {WEB} prohibit"),
    ),
    Case(name="node port from loopback kept in", commands=_both(_sysctl("ipv4/conf/all/route_localnet", 0))),
    Case(
        name="access filter without sets",
        commands=_both("ipset flush KUBE-CLUSTER-IP", "ipset flush KUBE-LOAD-BALANCER", "ipset flush KUBE-EXTERNAL-IP"),
    ),
    Case(name="untracked in raw", commands=_both(f"iptables-legacy -t raw -A PREROUTING -d {WEB} -j CT --notrack")),
    Case(
        name="PREROUTING drops the real server's answers",
        commands=_on("n1", f"iptables-legacy -t raw -A PREROUTING -s {WEB_2} -j DROP"),
    ),
    Case(
        name="drop_packet always",
        commands=_on("n1", _sysctl("ipv4/vs/am_droprate", 1), _sysctl("ipv4/vs/drop_packet", 3), DEFENSE_TIMER),
    ),
    Case(
        name="drop_packet one in two",
        commands=_on("n1", _sysctl("ipv4/vs/am_droprate", 2), _sysctl("ipv4/vs/drop_packet", 3), DEFENSE_TIMER),
    ),
    Case(name="drop_entry always", commands=_on("n1", _sysctl("ipv4/vs/drop_entry", 3), DEFENSE_TIMER)),
    Case(
        name="MTU of the way smaller",
        commands=_on("n1", "ip route change 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink mtu 1000"),
    ),
)

_POOL: tuple[Callable[[random.Random], tuple[str, ...]], ...] = (
    lambda r: (_sysctl("ipv4/vs/conntrack", r.choice((0, 0, 1))),),
    lambda r: (NO_MASQUERADE,),
    lambda r: (
        f"ipvsadm -E -t {r.choice((WEB, API))}:80 -s {r.choice(('rr', 'wrr', 'lc', 'wlc', 'sh', 'sh', 'dh', 'sed', 'nq', 'fo'))}",
    ),
    lambda r: (f"ipvsadm -e -t {WEB}:80 -r {r.choice((WEB_1, WEB_2))}:8080 -m -w {r.choice((0, 2, 5))}",),
    lambda r: (
        f"ipvsadm -a -t {WEB}:80 -r {r.choice((API_1, API_2, DB_1, '10.244.1.99', '172.18.0.11', '172.18.0.12', '172.18.0.100'))}:8080 -m -w {r.choice((1, 3))}",
    ),
    lambda r: (f"ipvsadm -d -t {WEB}:80 -r {r.choice((WEB_1, WEB_2))}:8080",),
    lambda r: (f"ipvsadm -D -t {r.choice((WEB, API, DB))}:{r.choice((80, 5432))} || true",),
    lambda r: (f"ip addr del {r.choice((WEB, API, ECHO))}/32 dev kube-ipvs0",),
    lambda r: (f"iptables-legacy -P {r.choice(('FORWARD', 'INPUT', 'OUTPUT'))} DROP",),
    lambda r: (
        (
            f"iptables-legacy {r.choice(('', '-t mangle'))} -I {r.choice(('INPUT', 'FORWARD', 'OUTPUT'))}"
            f" {r.choice(('-d', '-s'))} {r.choice((WEB, WEB_1, WEB_2, API, '10.244.0.0/16', '172.18.0.0/24'))} -j {r.choice(('DROP', 'ACCEPT'))}"
        ),
    ),
    lambda r: (
        (
            f"iptables-legacy -I {r.choice(('INPUT', 'FORWARD', 'OUTPUT'))} -m conntrack --ctstate"
            f" {r.choice(('INVALID', 'UNTRACKED', 'NEW', 'ESTABLISHED', 'DNAT'))} -j {r.choice(('DROP', 'REJECT'))}"
        ),
    ),
    lambda r: (
        (
            f"iptables-legacy -I {r.choice(('INPUT', 'FORWARD', 'OUTPUT'))} -p {r.choice(('tcp', 'udp'))}"
            f" --{r.choice(('dport', 'sport'))} {r.choice((80, 8080, 30080))} -j {r.choice(('DROP', 'REJECT'))}"
        ),
    ),
    lambda r: (
        f"iptables-legacy -t nat -I POSTROUTING {r.choice(('', '-o eth0', '-o cni0', '-d ' + WEB_2))} -j MASQUERADE",
    ),
    lambda r: (
        f"iptables-legacy -t nat -D {r.choice(('KUBE-POSTROUTING 1', 'KUBE-SERVICES 1', 'KUBE-SERVICES 2', 'PREROUTING 1', 'OUTPUT 1'))}",
    ),
    lambda r: (
        f"iptables-legacy -t raw -A {r.choice(('PREROUTING', 'OUTPUT'))} {r.choice(('-d', '-s'))} {r.choice((WEB, WEB_2, '10.244.0.0/16'))} -j CT --notrack",
    ),
    lambda r: (_sysctl("bridge/bridge-nf-call-iptables", 0),),
    lambda r: (_sysctl("ipv4/ip_forward", 0),),
    lambda r: (_sysctl("ipv4/conf/all/rp_filter", r.choice((1, 2))),),
    lambda r: (_sysctl("ipv4/vs/snat_reroute", 0),),
    lambda r: (
        f"ipset flush {r.choice(('KUBE-LOOP-BACK', 'KUBE-CLUSTER-IP', 'KUBE-NODE-PORT-TCP', 'KUBE-IPVS-IPS'))}",
    ),
    lambda r: (
        f"ip route {r.choice(('del', 'replace blackhole', 'replace prohibit'))} 10.244.{r.choice((1, 2))}.0/24 || true",
    ),
    lambda r: ("ip route del default",),
    lambda r: (_only(WEB, r.choice((WEB_1, WEB_2)), options="-g", to=80),),
)
"""What random cases are mixed from; a command that fails (the rule is gone already) counts as not given."""


def mixed(seed: int, number: int) -> Case:
    """Return random case `number` of a seed: one to four ingredients, each on one node or on both."""
    chance = random.Random(f"{seed}/{number}")
    commands: list[tuple[str, str]] = []
    for ingredient in chance.choices(_POOL, k=chance.randint(1, 4)):
        made = ingredient(chance)
        for node in chance.choice((("n1",), ("n2",), ("n1", "n2"))):
            commands += [(node, command) for command in made]
    return Case(name=f"mixed {seed}/{number}", commands=tuple(commands))
