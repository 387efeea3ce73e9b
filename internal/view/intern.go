package view

import "unique"

// InternString returns a text that shares its memory with all equal texts: a cache of 100,000
// objects has few different namespaces and pools.
func InternString(text string) string { return unique.Make(text).Value() }
