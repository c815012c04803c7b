"""What the kernel's settings say: `sysctl -a` output, cut down to those that decide what becomes of a packet.

A key is named by its path below /proc/sys: `net.ipv4.conf.flannel/1.rp_filter` is net/ipv4/conf/flannel.1/rp_filter.
"""

from collections.abc import Iterable, Mapping

from tasks.skoop.parse.errors import ParseError

SINGLE: Mapping[str, frozenset[str]] = {
    "net/bridge": frozenset(
        (
            *("bridge-nf-call-arptables", "bridge-nf-call-ip6tables", "bridge-nf-call-iptables"),
            *("bridge-nf-filter-pppoe-tagged", "bridge-nf-filter-vlan-tagged", "bridge-nf-pass-vlan-input-dev"),
        )
    ),
    "net/core": frozenset(("somaxconn", "netdev_max_backlog", "fb_tunnels_only_for_init_net")),
    "net/ipv4": frozenset(
        (
            *("ip_forward", "ip_nonlocal_bind", "ip_default_ttl", "ip_local_port_range", "ip_local_reserved_ports"),
            *("ip_unprivileged_port_start", "ip_no_pmtu_disc", "ip_forward_use_pmtu", "ip_early_demux", "ip_dynaddr"),
            *("fib_multipath_hash_fields", "fib_multipath_hash_policy", "fib_multipath_use_neigh", "fwmark_reflect"),
            *("tcp_fwmark_accept", "tcp_l3mdev_accept", "udp_l3mdev_accept", "raw_l3mdev_accept", "ping_group_range"),
            *("icmp_echo_ignore_all", "icmp_echo_ignore_broadcasts", "icmp_errors_use_inbound_ifaddr"),
            *("icmp_ratelimit", "icmp_ratemask", "icmp_msgs_per_sec", "icmp_msgs_burst"),
            *("tcp_mtu_probing", "tcp_base_mss", "tcp_max_syn_backlog", "tcp_syncookies", "tcp_abort_on_overflow"),
            *("tcp_syn_retries", "tcp_timestamps", "tcp_tw_reuse", "nexthop_compat_mode"),
            *("ipfrag_high_thresh", "ipfrag_time"),
        )
    ),
    "net/ipv4/route": frozenset(("min_pmtu", "mtu_expires", "min_adv_mss", "max_size")),
    "net/ipv4/neigh/default": frozenset(("gc_thresh1", "gc_thresh2", "gc_thresh3")),
    "net/ipv4/vs": frozenset(
        (
            *("conntrack", "snat_reroute", "conn_reuse_mode", "expire_nodest_conn", "expire_quiescent_template"),
            *("sloppy_tcp", "sloppy_sctp", "pmtu_disc", "nat_icmp_send", "drop_entry", "drop_packet", "am_droprate"),
            *("backup_only", "cache_bypass", "schedule_icmp", "ignore_tunneled"),
        )
    ),
    "net/ipv6": frozenset(
        (
            *("bindv6only", "ip_nonlocal_bind", "fwmark_reflect", "fib_multipath_hash_fields"),
            *("fib_multipath_hash_policy", "flowlabel_consistency", "ip6frag_high_thresh", "ip6frag_time"),
        )
    ),
    "net/ipv6/icmp": frozenset(
        ("echo_ignore_all", "echo_ignore_anycast", "echo_ignore_multicast", "ratelimit", "ratemask")
    ),
    "net/ipv6/route": frozenset(("min_adv_mss", "mtu_expires", "max_size")),
    "net/ipv6/neigh/default": frozenset(("gc_thresh1", "gc_thresh2", "gc_thresh3")),
    "net/netfilter": frozenset(
        (
            *("nf_conntrack_max", "nf_conntrack_count", "nf_conntrack_buckets", "nf_conntrack_checksum"),
            *("nf_conntrack_tcp_be_liberal", "nf_conntrack_tcp_loose", "nf_conntrack_tcp_ignore_invalid_rst"),
            *("nf_conntrack_tcp_timeout_established", "nf_conntrack_tcp_timeout_close_wait"),
            *("nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream", "nf_conntrack_helper"),
            *("nf_conntrack_generic_timeout", "nf_hooks_lwtunnel"),
        )
    ),
}
"""Folder below /proc/sys → the settings in it that decide."""

PER_DEVICE: Mapping[str, frozenset[str]] = {
    "net/ipv4/conf": frozenset(
        (
            *("forwarding", "rp_filter", "accept_local", "route_localnet", "src_valid_mark", "proxy_arp"),
            *("proxy_arp_pvlan", "arp_announce", "arp_filter", "arp_ignore", "arp_accept", "bc_forwarding"),
            *("mc_forwarding", "ignore_routes_with_linkdown", "disable_policy", "disable_xfrm", "medium_id"),
            *("accept_redirects", "secure_redirects", "send_redirects", "shared_media", "accept_source_route"),
            *("drop_unicast_in_l2_multicast", "drop_gratuitous_arp", "log_martians"),
        )
    ),
    "net/ipv6/conf": frozenset(
        (
            *("forwarding", "force_forwarding", "disable_ipv6", "proxy_ndp", "mtu", "hop_limit", "accept_ra"),
            *("accept_redirects", "accept_source_route", "accept_dad", "ignore_routes_with_linkdown", "disable_policy"),
            *(
                "drop_unicast_in_l2_multicast",
                "use_oif_addrs_only",
                "use_tempaddr",
                "keep_addr_on_down",
                "mc_forwarding",
            ),
        )
    ),
}
"""Folder with one subfolder per interface, `all` and `default` → the settings in it that decide."""

_SWAP = str.maketrans("./", "/.")


def decides(path: str) -> bool:
    """Say whether a setting, by its path below /proc/sys, can decide what becomes of a packet."""
    folder, _, name = path.rpartition("/")
    return name in SINGLE.get(folder, ()) or name in PER_DEVICE.get(folder.rpartition("/")[0], ())


def parse_sysctl(text: str, source: str = "sysctl-net.txt") -> dict[str, str]:
    """Return path → value of the settings that decide, in order. Raises ParseError for a line without ` = `."""
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line or line.startswith(("sysctl:", "#")):
            continue
        key, equals, value = line.partition(" =")
        if not equals:
            key, equals, value = line.partition("=")
        if not equals or not key:
            raise ParseError(source, number, 1, f"{line[:100]!r} is not a line of sysctl -a")
        path = sysctl_path(key.strip())
        if decides(path):
            found[path] = value.strip()
    return found


def sysctl_path(key: str) -> str:
    """Return the path below /proc/sys of a key in either spelling."""
    return key if key.startswith("net/") else key.translate(_SWAP)


def deciding(settings: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return those of (path, value) that decide."""
    return {path: value for path, value in settings if decides(path)}
