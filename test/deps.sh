#!/bin/sh
# Installs the Debian packages that the lab needs, if this user may do that. Otherwise it lists what is
# missing. With the argument "kernel" it also installs those of make test-kernel.
set -eu
missing=
need() { command -v "$1" >/dev/null 2>&1 || missing="$missing $2"; }
PATH=$PATH:/usr/sbin:/sbin
need nft nftables
need iptables iptables
need conntrack conntrack
need tcpdump tcpdump
need vtysh frr
need bird bird2
need nginx nginx-light
if [ "${1:-}" = kernel ]; then
	need qemu-system-x86_64 qemu-system-x86
	# The guest starts from busybox, so it has to be the one that is linked statically.
	if ldd "$(command -v busybox || echo /bin/sh)" >/dev/null 2>&1; then missing="$missing busybox-static"; fi
fi
[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
	echo "missing; install the packages:$missing" >&2
	exit 1
fi
echo "installing:$missing"
# The packages must not start their services: the lab runs its own copies in its own namespaces.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
	printf '#!/bin/sh\nexit 101\n' >$policy
	chmod +x $policy
	trap 'rm -f $policy' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# shellcheck disable=SC2086 # a list of packages
apt-get install -y -qq --no-install-recommends $missing >/dev/null
