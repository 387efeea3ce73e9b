#!/bin/sh
# Writes docs/chart-values.md, the table of the chart's values, to the standard output: the part before the mark stays
# as it is, and the rest comes from the comments of values.yaml that begin with "--". The arguments are the two files.
set -eu
sed '/^<!-- generated/q' "$1"
awk '
function cell(s) { gsub(/\|/, "\\|", s); return s }
/^ *# -- / { sub(/^ *# -- /, ""); text = $0; next }
/^ *# / { if (text != "") { sub(/^ *# /, ""); text = text " " $0 }; next }
/^ *[A-Za-z0-9]+:/ {
	match($0, /^ */); level = RLENGTH / 2
	line = substr($0, RLENGTH + 1); key = line; sub(/:.*/, "", key)
	value = substr(line, length(key) + 2); sub(/^ /, "", value)
	path = (level ? name[level - 1] "." : "") key; name[level] = path
	if (value != "") {
		part = level ? name[0] : ""
		if (!(part in rows)) order[++parts] = part
		rows[part] = rows[part] "| `" path "` | `" cell(value) "` | " cell(text) " |\n"
	}
	text = ""; next
}
{ text = "" }
END {
	if ("" in rows) print "\n### All objects\n| value | default | what it sets |\n|---|---|---|\n" rows[""]
	for (i = 1; i <= parts; i++) if (order[i] != "")
		print (i > 1 || ("" in rows) ? "" : "\n") "### " order[i] "\n| value | default | what it sets |\n|---|---|---|\n" rows[order[i]]
}' "$2" | sed -e :a -e '/^\n*$/{$d;N;ba' -e '}'
