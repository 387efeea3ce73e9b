#!/bin/sh
# Fails on a function that nothing calls, unless tools/deadcode.txt names it, and on a line of that
# list that is not needed any more. It runs deadcode twice: over the whole module with tests, and over
# product code without tests, to find functions that only tests call. The second run ignores packages
# whose names end in "test", because they replace something in tests.
set -eu
cd "$(dirname "$0")/.."
# dead READING FLAG... prints a line for each dead function: reading, package, function, place.
dead() {
	reading=$1
	shift
	go tool -modfile=tools/go.mod deadcode \
		-f='{{range .Funcs}}{{printf "'"$reading"' %s %s %s:%d\n" $.Path .Name .Position.File .Position.Line}}{{end}}' "$@"
}
module=$(go list -m)
found=$(dead all -test ./... && dead product -filter="^$module/(api|cmd|internal|controller|speaker)(/|\$)" ./...)
printf '%s\n' "$found" | awk -v module="$module/" -v list=tools/deadcode.txt '
	BEGIN {
		while ((getline line < list) > 0) {
			if (line ~ /^#/ || line == "") continue
			n = split(line, word, " ")
			if (n < 3) { print list ": " line ": write package, function and reason"; bad = 1 }
			excused[word[1] " " word[2]] = 1
		}
	}
	NF == 4 {
		sub("^" module, "", $2)
		if ($1 == "product" && $2 ~ /test$/ && $2 !~ /latest$/) next
		name = $2 " " $3
		used[name] = 1
		if (excused[name] || seen[name]++) next
		print $4 ": nothing calls " $3 " of " $2 ($1 == "product" ? " but tests" : "") ": delete it, or name it in " list " with a reason"
		bad = 1
	}
	END {
		for (name in excused) if (!used[name]) { print list ": " name " is called, or gone: delete the line"; bad = 1 }
		exit bad
	}'
