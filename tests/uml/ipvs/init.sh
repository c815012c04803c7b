#!/bin/sh
# First process of the user-mode Linux that referees IPVS: mounts, modules, then tests/uml/ipvs/inside.py; ends the machine.
# Reads from the kernel's command line: kp_root (the repository), kp_out (a folder of the host to write to), kp_args.
export PATH=/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/run TMPDIR=/run LC_ALL=C.UTF-8
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /run
for word in $(cat /proc/cmdline); do
    case $word in
        kp_root=*) root=${word#*=} ;;
        kp_out=*) out=${word#*=} ;;
        kp_args=*) args=$(echo "${word#*=}" | tr , ' ') ;;
    esac
done
mkdir /run/out /run/modules /run/modules/lib
mount -t hostfs none /run/out -o "$out"
ln -s /usr/lib/uml/modules /run/modules/lib/modules
printf '#!/bin/sh\nexec /sbin/modprobe -d /run/modules "$@"\n' >/run/modules/modprobe
chmod +x /run/modules/modprobe
echo /run/modules/modprobe >/proc/sys/kernel/modprobe
for module in bridge br_netfilter veth vxlan dummy ip_vs iptable_nat iptable_filter iptable_mangle iptable_raw \
    ip6table_nat ip6table_filter ip6table_mangle ip6table_raw nf_conntrack_netlink ip_set xt_set inet_diag tcp_diag udp_diag raw_diag; do
    /sbin/modprobe -d /run/modules $module 2>>/run/out/modprobe.log
done
ip link set lo up
echo 2 >/proc/sys/net/core/fb_tunnels_only_for_init_net
export XTABLES_LOCKFILE=/run/xtables.lock PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="$root"
cd "$root" && .venv/bin/python -P -m tests.uml.ipvs.inside --out /run/out $args >/run/out/log 2>&1
echo $? >/run/out/status
sync
/sbin/halt -f -p 2>/dev/null || poweroff -f
