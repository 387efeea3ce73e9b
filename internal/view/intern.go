package view

import "unique"

// Intern returns the text in memory that all who have the same share: a cache of 100,000 objects has few namespaces and pools.
func Intern(text string) string { return unique.Make(text).Value() }
