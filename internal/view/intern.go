package view

import "unique"

// Intern returns a text that shares its memory with all equal texts: a cache of 100,000 objects has
// few different namespaces and pools.
func Intern(text string) string { return unique.Make(text).Value() }
