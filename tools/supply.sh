#!/bin/sh
# Checks what the programs and tools are made of: that the modules on this machine are those of go.sum, that no
# linked module has a licence that is not allowed, and that no called function has a known vulnerability.
set -eu
cd "$(dirname "$0")/.."
for dir in . tools tools/alerts tools/packages test/lab/kube; do
	go -C $dir mod verify > /dev/null || { echo "$dir: a module on this machine differs from go.sum"; exit 1; }
done
tools/licenses.sh
# Its data cannot be had on a machine without access to the internet, or to the copy that GOVULNDB names.
database=${GOVULNDB:-https://vuln.go.dev}
if reply=$(curl -fsS --max-time 10 -o /dev/null "$database/index/db.json" 2>&1); then
	go tool -modfile=tools/go.mod govulncheck ./...
else
	echo "govulncheck: skipped, because $database cannot be read: $reply"
fi
