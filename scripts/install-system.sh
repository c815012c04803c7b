#!/usr/bin/env bash
# Installs what the demo, the lab and the tests need of the system, and nothing that is there already.
#
# As root on Debian or Ubuntu: by apt-get, quietly. As anybody else, or on another system: prints what to ask for and goes
# on, since the demo has a recorded cluster to fall back on and tests skip by name what the machine cannot do.
set -euo pipefail

# command:package pairs; a command that is found on the usual paths needs no package.
needs=(
  ip:iproute2 tc:iproute2 bridge:iproute2
  iptables-legacy:iptables iptables-nft:iptables nft:nftables ipset:ipset conntrack:conntrack
  ethtool:ethtool sysctl:procps ps:procps zstd:zstd unshare:util-linux nsenter:util-linux
  clang:clang
)
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

missing=()
add() {
  local package
  for package in "${missing[@]+"${missing[@]}"}"; do [ "$package" = "$1" ] && return; done
  missing+=("$1")
}
for pair in "${needs[@]}"; do
  command -v "${pair%%:*}" >/dev/null || add "${pair##*:}"
done
compgen -G '/usr/lib*/*/libbpf.so.1' >/dev/null || compgen -G '/usr/lib*/libbpf.so.1' >/dev/null || add libbpf1
if ! "$(dirname "$0")/find-python.sh" >/dev/null 2>&1; then
  add python3
  add python3-venv
fi
[ "${#missing[@]}" -gt 0 ] || exit 0

if [ "$(id -u)" -ne 0 ]; then
  echo "Some things work only with these packages; ask an administrator for:  apt-get install ${missing[*]}" >&2
  exit 0
fi
if ! command -v apt-get >/dev/null; then
  echo "This is not Debian or Ubuntu; install what holds the same as these packages of Debian: ${missing[*]}" >&2
  exit 0
fi

echo "installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
log="$(mktemp)"
trap 'rm -f "$log"' EXIT
install() { apt-get install -y --no-install-recommends "${missing[@]}" >>"$log" 2>&1 </dev/null; }
# The lists of a new machine are often empty or old: fetch them before giving up.
install || { apt-get update >>"$log" 2>&1 </dev/null && install; } || {
  tail -n 20 "$log" >&2
  echo "apt-get could not install: ${missing[*]}. Mend that, or install them by hand, and run this again." >&2
  exit 3
}
