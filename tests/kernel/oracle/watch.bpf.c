/*
 * Tells of every IP packet that a device of a watched network namespace takes in or sends, and of every one that the kernel
 * throws away there. Each telling is one record of fixed size (events.py unpacks them), already taken apart: addresses and
 * ports, inside a vxlan those of the carried packet, in an ICMP error also those of the packet it is about.
 *
 * The kernel's structures are named only as far as they are read; libbpf finds the fields' real places by the kernel's own
 * type information (CO-RE), so that no header of the kernel is needed and the object runs on any kernel that has it.
 * Of TCP only what tells a way is told: SYN, SYN-ACK, RST and large segments; of bare ACKs and small data only the drops.
 * Neighbour discovery, multicast listening, IGMP, redirects and ARP are left out: no connection of a scenario is one of these.
 */
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))
#define KERNEL __attribute__((preserve_access_index))
#define SWAP16(x) ((u16)__builtin_bswap16(x))
#define SWAP32(x) __builtin_bswap32(x)

static void *(*const map_lookup)(void *map, const void *key) = (void *)1;
static u64 (*const ktime_ns)(void) = (void *)5;
static long (*const probe_read)(void *to, u32 size, const void *from) = (void *)113;
static void *(*const ringbuf_reserve)(void *map, u64 size, u64 flags) = (void *)131;
static void (*const ringbuf_submit)(void *data, u64 flags) = (void *)132;

struct ns_common { u32 inum; } KERNEL;
struct net { struct ns_common ns; } KERNEL;
struct possible_net { struct net *net; } KERNEL;
struct net_device { char name[16]; int ifindex; struct possible_net nd_net; } KERNEL;
struct sock_common { struct possible_net skc_net; u16 skc_num; } KERNEL;
struct sock { struct sock_common __sk_common; } KERNEL;
struct dst_entry { struct net_device *dev; } KERNEL;
struct sk_buff {
	struct net_device *dev;
	struct sock *sk;
	unsigned long _skb_refdst;
	u32 mark;
	u16 protocol;
	u16 network_header;
	unsigned char *head, *data;
} KERNEL;

enum { DROP = 1, RX = 2, TX = 3 };
enum { LARGE = 600 };
enum { PLAIN = 0, VXLAN = 1, ERROR = 2 };

struct event {
	u64 at_ns, skb, location;
	u32 netns, ifindex, mark, reason, seq, ack, vni, sock_netns;
	u16 length, sport, dport, sock_port, other_sport, other_dport;
	u8 kind, version, protocol, ttl, flags, icmp_type, icmp_code, form, fragment, other_protocol, pad[2];
	u8 src[16], dst[16], other_src[16], other_dst[16];
	char dev[16];
};

struct {
	int (*type)[27]; /* BPF_MAP_TYPE_RINGBUF */
	int (*max_entries)[1 << 22];
} told SEC(".maps");

struct {
	int (*type)[1]; /* BPF_MAP_TYPE_HASH */
	u32 *key;
	u8 *value;
	int (*max_entries)[4096];
} watched SEC(".maps");

struct {
	int (*type)[2]; /* BPF_MAP_TYPE_ARRAY */
	u32 *key;
	u64 *value;
	int (*max_entries)[1];
} lost SEC(".maps");

struct l3 {
	u32 next; /* where the transport header starts */
	u8 protocol, version, ttl, fragment;
	u16 length;
};

INLINE void copy4(u8 *to, const u8 *from)
{
	to[10] = to[11] = 0xff;
	__builtin_memcpy(to + 12, from, 4);
}

/* Read an IP header at `at`; 0 if there is none. */
INLINE int read_ip(const unsigned char *head, u32 at, struct l3 *l3, u8 *src, u8 *dst)
{
	u8 ip[40];

	if (probe_read(ip, sizeof(ip), head + at))
		return 0;
	l3->version = ip[0] >> 4;
	l3->fragment = 0;
	if (l3->version == 4) {
		l3->next = at + (ip[0] & 15) * 4;
		l3->length = ip[2] << 8 | ip[3];
		l3->fragment = ((ip[6] << 8 | ip[7]) & 0x1fff) != 0;
		l3->ttl = ip[8];
		l3->protocol = ip[9];
		copy4(src, ip + 12);
		copy4(dst, ip + 16);
		return 1;
	}
	if (l3->version != 6)
		return 0;
	l3->next = at + 40;
	l3->length = (ip[4] << 8 | ip[5]) + 40;
	l3->protocol = ip[6];
	l3->ttl = ip[7];
	__builtin_memcpy(src, ip + 8, 16);
	__builtin_memcpy(dst, ip + 24, 16);
	if (l3->protocol == 44) { /* a fragment header */
		u8 part[8];
		if (probe_read(part, sizeof(part), head + l3->next))
			return 0;
		l3->protocol = part[0];
		l3->fragment = ((part[2] << 8 | part[3]) & 0xfff8) != 0;
		l3->next += 8;
	}
	return 1;
}

INLINE void read_l4(struct event *e, const unsigned char *head, const struct l3 *l3)
{
	u8 l4[16];

	e->length = l3->length;
	e->version = l3->version;
	e->protocol = l3->protocol;
	e->ttl = l3->ttl;
	e->fragment = l3->fragment;
	if (l3->fragment || probe_read(l4, sizeof(l4), head + l3->next))
		return;
	if (l3->protocol == 6) {
		e->seq = SWAP32(*(u32 *)(l4 + 4));
		e->ack = SWAP32(*(u32 *)(l4 + 8));
		e->flags = l4[13];
	}
	if (l3->protocol == 6 || l3->protocol == 17 || l3->protocol == 132) {
		e->sport = l4[0] << 8 | l4[1];
		e->dport = l4[2] << 8 | l4[3];
	} else if (l3->protocol == 1 || l3->protocol == 58) {
		e->icmp_type = l4[0];
		e->icmp_code = l4[1];
		e->sport = l4[4] << 8 | l4[5]; /* an echo's identifier */
	}
}

INLINE int is_error(const struct event *e)
{
	return e->protocol == 1 ? e->icmp_type == 3 || e->icmp_type == 11 || e->icmp_type == 12
				: e->protocol == 58 && e->icmp_type < 128;
}

/* Fill in what the packet is; 0 if it is none of ours. */
INLINE int read_packet(struct event *e, const unsigned char *head, u32 at)
{
	struct l3 l3 = {};

	if (!read_ip(head, at, &l3, e->src, e->dst) || l3.protocol == 2 || l3.protocol == 0)
		return 0;
	read_l4(e, head, &l3);
	if (l3.fragment)
		return 1;
	if ((l3.protocol == 58 && e->icmp_type > 129) || (l3.protocol == 1 && e->icmp_type == 5))
		return 0;
	if (l3.protocol == 17 && (e->dport == 8472 || e->dport == 4789)) {
		u8 vxlan[8];
		if (probe_read(vxlan, sizeof(vxlan), head + l3.next + 8) || !(vxlan[0] & 8))
			return 1;
		struct l3 inner = {};
		u8 src[16] = {}, dst[16] = {};
		if (!read_ip(head, l3.next + 8 + 8 + 14, &inner, src, dst))
			return 0; /* ARP inside */
		e->form = VXLAN;
		e->vni = vxlan[4] << 16 | vxlan[5] << 8 | vxlan[6];
		e->other_protocol = 17;
		e->other_sport = e->sport;
		e->other_dport = e->dport;
		__builtin_memcpy(e->other_src, e->src, 16);
		__builtin_memcpy(e->other_dst, e->dst, 16);
		__builtin_memcpy(e->src, src, 16);
		__builtin_memcpy(e->dst, dst, 16);
		e->sport = e->dport = 0;
		read_l4(e, head, &inner);
		if (!inner.fragment && ((inner.protocol == 58 && e->icmp_type > 129) || (inner.protocol == 1 && e->icmp_type == 5)))
			return 0;
	}
	if (is_error(e) && e->form == PLAIN) {
		struct l3 quoted = {};
		u8 ports[8];
		if (!read_ip(head, l3.next + 8, &quoted, e->other_src, e->other_dst))
			return 1;
		e->form = ERROR;
		e->other_protocol = quoted.protocol;
		if (quoted.fragment || probe_read(ports, sizeof(ports), head + quoted.next))
			return 1;
		int echo = quoted.protocol == 1 || quoted.protocol == 58;
		e->other_sport = echo ? ports[4] << 8 | ports[5] : ports[0] << 8 | ports[1];
		e->other_dport = echo ? 0 : ports[2] << 8 | ports[3];
	}
	return 1;
}

INLINE int tell(u32 kind, struct sk_buff *skb, u32 reason, u64 location)
{
	u16 protocol = skb->protocol;
	struct net_device *dev = skb->dev;
	struct sock *sk = skb->sk;
	u32 netns = 0, ifindex = 0, zero = 0;
	struct event e = {};

	if (protocol != SWAP16(0x0800) && protocol != SWAP16(0x86dd))
		return 0;
	if (dev) {
		netns = dev->nd_net.net->ns.inum;
		ifindex = dev->ifindex;
		probe_read(e.dev, sizeof(e.dev), &dev->name);
	} else if (sk) {
		netns = sk->__sk_common.skc_net.net->ns.inum;
	} else {
		struct dst_entry *dst = (void *)(skb->_skb_refdst & ~7UL);
		struct net *net = 0;
		if (dst && !probe_read(&dev, sizeof(dev), &dst->dev) && dev && !probe_read(&net, sizeof(net), &dev->nd_net.net))
			probe_read(&netns, sizeof(netns), &net->ns.inum);
	}
	if (!map_lookup(&watched, &netns))
		return 0;
	const unsigned char *head = skb->head;
	u32 at = kind == RX ? (u32)(skb->data - head) : skb->network_header;
	if (!read_packet(&e, head, at))
		return 0;
	if (kind != DROP && e.protocol == 6 && !(e.flags & (2 | 4)) && e.length < LARGE)
		return 0;
	if (sk) {
		e.sock_port = sk->__sk_common.skc_num;
		e.sock_netns = sk->__sk_common.skc_net.net->ns.inum;
	}
	e.at_ns = ktime_ns();
	e.skb = (u64)skb;
	e.location = location;
	e.kind = kind;
	e.reason = reason;
	e.netns = netns;
	e.ifindex = ifindex;
	e.mark = skb->mark;
	struct event *out = ringbuf_reserve(&told, sizeof(e), 0);
	if (!out) {
		u64 *count = map_lookup(&lost, &zero);
		if (count)
			__sync_fetch_and_add(count, 1);
		return 0;
	}
	*out = e;
	/* Only a drop wakes who waits: 1 is BPF_RB_NO_WAKEUP, 2 BPF_RB_FORCE_WAKEUP. */
	ringbuf_submit(out, kind == DROP ? 2 : 1);
	return 0;
}

/* Reasons 0 and 1 are no drops (not dropped yet, consumed). */
SEC("tp_btf/kfree_skb") int on_drop(u64 *ctx)
{
	return (u32)ctx[2] >= 2 ? tell(DROP, (void *)ctx[0], ctx[2], ctx[1]) : 0;
}

SEC("tp_btf/netif_receive_skb") int on_receive(u64 *ctx)
{
	return tell(RX, (void *)ctx[0], 0, 0);
}

SEC("tp_btf/net_dev_start_xmit") int on_transmit(u64 *ctx)
{
	return tell(TX, (void *)ctx[0], 0, 0);
}

char our_license[] SEC("license") = "GPL";
