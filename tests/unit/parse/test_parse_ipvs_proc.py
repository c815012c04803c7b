"""What /proc tells of IPVS: services in the kernel's order, connections, and both put together with ipvsadm."""

import pytest

from tasks.skoop.model.addr import Ip
from tasks.skoop.model.packet import Protocol
from tasks.skoop.model.state import IpvsConnection, IpvsDestination, IpvsService
from tasks.skoop.parse.errors import ParseError
from tasks.skoop.parse.ipvs import in_kernel_order, parse_ip_vs, parse_ip_vs_conn, parse_ipvsadm

HEAD = (
    "IP Virtual Server version 1.2.1 (size=4096)\nProt LocalAddress:Port Scheduler Flags\n"
    "  -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n"
)
SERVICES = (
    HEAD + "TCP  0A600001:0050 rr \n"
    "  -> 0AF40204:1F90      Masq    1      0          0         \n"
    "  -> 0AF40104:1F90      Masq    3      2          5         \n"
    "UDP  [fd00:0010:0096:0000:0000:0000:0000:0a0f]:0035 sh ops persistent 30000 00000070\n"
    "  -> [fd00:0010:0244:0000:0000:0000:0000:0005]:0035      Route   0      0          0         \n"
    "FWM  00000007 wlc persistent 30000 FFFFFF00\n"
    "  -> 0AF40204:0000      Tunnel  1      0          0         \n"
)
FIRST, SECOND = IpvsDestination(Ip("10.244.2.4"), 8080), IpvsDestination(Ip("10.244.1.4"), 8080, "masq", 3)


def test_services_in_the_kernels_order() -> None:
    assert parse_ip_vs(SERVICES) == (
        IpvsService(ip=Ip("10.96.0.1"), port=80, ordered=True, destinations=(FIRST, SECOND)),
        IpvsService(
            protocol=Protocol.UDP,
            ip=Ip("fd00:10:96::a0f"),
            port=53,
            scheduler="sh",
            persistent_s=300,
            netmask="112",
            flags=("ops",),
            ordered=True,
            destinations=(IpvsDestination(Ip("fd00:10:244::5"), 53, "route", 0),),
        ),
        IpvsService(
            fwmark=7,
            scheduler="wlc",
            persistent_s=300,
            netmask="255.255.255.0",
            ordered=True,
            destinations=(IpvsDestination(Ip("10.244.2.4"), 0, "tunnel"),),
        ),
    )
    assert parse_ip_vs(HEAD) == ()


def test_connections() -> None:
    text = (
        "Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData\n"
        "TCP 0AF40103 9C40 0A600001 0050 0AF40204 1F90 ESTABLISHED     899\n"
        "IP  0AF40100 0000 00000007 0000 0AF40204 0000 NONE             42\n"
        "UDP fd00:0010:0244:0000:0000:0000:0000:0005 9C40 fd00:0010:0096:0000:0000:0000:0000:0a0f 0035 "
        "fd00:0010:0244:0000:0000:0000:0000:0006 0035 UDP             299\n"
    )
    first, template, six = parse_ip_vs_conn(text)
    assert first == IpvsConnection(
        protocol=Protocol.TCP,
        client=Ip("10.244.1.3"),
        client_port=40000,
        virtual=Ip("10.96.0.1"),
        virtual_port=80,
        ip=Ip("10.244.2.4"),
        port=8080,
        state="ESTABLISHED",
        expires_s=899,
    )
    assert (template.protocol, template.virtual, template.client_port) == (Protocol.OTHER, "0.0.0.7", 0)
    assert (six.client, six.ip) == ("fd00:10:244::5", "fd00:10:244::6")


def test_ipvsadm_gets_the_kernels_order() -> None:
    saved = parse_ipvsadm(
        "-A -t 10.96.0.1:80 -s sh -b sh-fallback,sh-port -p 600 -M 255.255.255.0\n"
        "-a -t 10.96.0.1:80 -r 10.244.1.4:8080 -m -w 3\n-a -t 10.96.0.1:80 -r 10.244.2.4:8080 -m -w 1\n"
    )
    assert saved[0].flags == ("sh-fallback", "sh-port")
    assert (saved[0].netmask, saved[0].ordered) == ("255.255.255.0", False)
    (merged,) = in_kernel_order(saved, parse_ip_vs(SERVICES))
    assert merged.ordered
    assert merged.destinations == (FIRST, SECOND)
    assert merged.flags == saved[0].flags


def test_what_changed_meanwhile_is_not_put_in_order() -> None:
    saved = parse_ipvsadm("-A -t 10.96.0.1:80 -s sh\n-a -t 10.96.0.1:80 -r 10.244.1.9:8080 -m\n")
    assert in_kernel_order(saved, parse_ip_vs(SERVICES)) == saved


@pytest.mark.parametrize(
    ("text", "line"),
    [
        pytest.param(HEAD + "  -> 0AF40204:1F90 Masq 1 0 0", 4, id="server of no service"),
        pytest.param(HEAD + "TCP  0A600001:0050 rr\n  -> 0AF40204:1F90 Mask 1 0 0", 5, id="no such method"),
        pytest.param(HEAD + "TCP  0A6000:", 4, id="half a line"),
        pytest.param(HEAD + "\n", 4, id="an empty line"),
    ],
)
def test_refuses(text: str, line: int) -> None:
    with pytest.raises(ParseError, match=rf"^x:{line}:1: "):
        parse_ip_vs(text, "x")


def test_refuses_half_a_connection() -> None:
    with pytest.raises(ParseError, match=r"^x:2:1: "):
        parse_ip_vs_conn("Pro\nTCP 0AF40103 9C40 0A600001", "x")
