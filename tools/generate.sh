#!/bin/sh
# Generates the deepcopy functions, the CRDs, the table of the chart's values, and the reference pages. It works on a
# copy of api/ and replaces only files that change. So nothing reads a file that is half written, and the cache of go
# test stays valid, which looks at the times of files. With the argument "check" it fails if a file was not current.
# Each CRD says that its versions need no conversion. Another product may have left a conversion webhook in a CRD, and
# its Service is gone: "webhook: null" makes `kubectl apply` remove it.
set -eu
cd "$(dirname "$0")/.."
generator=$(go tool -n -modfile=tools/go.mod controller-gen)
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
cp -R go.mod go.sum api "$copy"
(cd "$copy" && "$generator" object crd paths=./api/... output:crd:dir=config/crd/bases)
sed -i 's/^spec:$/spec:\n  conversion:\n    strategy: None\n    webhook: null/' "$copy"/config/crd/bases/*.yaml
mkdir "$copy/docs"
sh tools/chartvalues.sh docs/chart-values.md charts/gantry/values.yaml > "$copy/docs/chart-values.md"
outdated=
replace_outdated() {
	for file in $(cd "$copy" && find api config docs -name 'zz_generated*' -o -path 'config/*' -type f -o -path 'docs/*' -type f); do
		cmp -s "$copy/$file" "$file" && continue
		cp "$copy/$file" "$file"
		outdated="$outdated $file"
	done
}
replace_outdated
for file in config/crd/bases/*; do
	[ -e "$copy/$file" ] && continue
	rm "$file"
	outdated="$outdated $file"
done
# The reference pages are made from the CRDs, so these have to be current before.
go run ./test/documents/reference "$copy/docs"
replace_outdated
[ -n "$outdated" ] || exit 0
echo "generated:$outdated"
[ "${1:-}" != check ] || { echo 'these files were not current; they are now: commit them' >&2; exit 1; }
