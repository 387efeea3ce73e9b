#!/bin/sh
# Prints the manifest of the krew plugin. Arguments: the directory with the archives, the version, and
# each OS/ARCH.
set -eu
dir=$1 version=$2
shift 2
cat <<EOF
apiVersion: krew.googlecontainertools.github.com/v1alpha2
kind: Plugin
metadata: {name: gantry}
spec:
  version: $version
  homepage: https://github.com/gantry-lb/gantry
  shortDescription: Say why a LoadBalancer Service does not work
  description: |
    Says in one line whether Gantry, a bare-metal LoadBalancer, and its Services work, and why not.
    It also checks what a cluster needs before an installation (preflight), asks a Service from this
    machine (probe), and writes an archive for support without secrets (support-bundle).
    It has the rights of the user. Start with: kubectl gantry status
  platforms:
EOF
for target in "$@"; do
	os=${target%/*} arch=${target#*/} bin=kubectl-gantry
	[ "$os" != windows ] || bin=kubectl-gantry.exe
	archive=kubectl-gantry-$os-$arch.tar.gz
	cat <<EOF
  - selector: {matchLabels: {os: $os, arch: $arch}}
    uri: https://github.com/gantry-lb/gantry/releases/download/$version/$archive
    sha256: $(sha256sum "$dir/$archive" | cut -d' ' -f1)
    bin: $bin
EOF
done
