#!/bin/sh
# Lists the modules that are linked into the programs, with their licences, and compares the list with
# tools/licenses.txt. With -w it writes the list instead. A licence that is not in the pattern of allowed ones is
# an error: its terms have to be read first.
set -eu
cd "$(dirname "$0")/.."
list=tools/licenses.txt
allowed='^(Apache-2.0|BSD-2-Clause|BSD-3-Clause|ISC|MIT|MPL-2.0)$'

licence_of() {
	# the text of MPL-2.0 names the licences of GNU
	if grep -qi 'mozilla public license' "$1"; then echo MPL-2.0
	elif grep -qi 'general public license' "$1"; then echo GPL
	elif grep -qi 'apache license' "$1"; then echo Apache-2.0
	elif grep -qi 'permission is hereby granted, free of charge' "$1"; then echo MIT
	elif grep -qi 'permission to use, copy, modify, and.*distribute' "$1"; then echo ISC
	elif grep -qi 'redistribution and use in source and binary forms' "$1"; then
		if grep -qi 'neither the name' "$1"; then echo BSD-3-Clause; else echo BSD-2-Clause; fi
	else echo unknown
	fi
}

found=$(mktemp)
trap 'rm -f "$found"' EXIT
go list -deps -f '{{with .Module}}{{if not .Main}}{{.Path}} {{.Dir}}{{end}}{{end}}' ./controller ./speaker ./cmd/kubectl-gantry | sort -u | grep . |
while read -r module dir; do
	file=$(find "$dir" -maxdepth 1 -type f \( -iname 'licen[cs]e*' -o -iname 'copying*' \) | sort | head -n 1)
	if [ -z "$file" ]; then echo "$module none"; else echo "$module $(licence_of "$file")"; fi
done > "$found"
refused=$(while read -r module licence; do echo "$licence" | grep -Eq "$allowed" || echo "$module: $licence"; done < "$found")
if [ -n "$refused" ]; then
	echo "these linked modules have a licence that is not allowed: read its terms before you link them:"
	echo "$refused"
	exit 1
fi
if [ "${1:-}" = -w ]; then
	cp "$found" $list
elif ! diff -u $list "$found"; then
	echo "the linked modules differ from $list: read the licences of the new ones, and run tools/licenses.sh -w"
	exit 1
fi
