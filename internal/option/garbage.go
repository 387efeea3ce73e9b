package option

import (
	"os"
	"runtime"
	"runtime/debug"
)

// SetGCPercentAndStopMemProfile bounds the garbage to a percentage of the live heap before it is
// collected, unless the environment variable GOGC is set. Nearly all of the heap changes seldom, so
// that collecting often costs little and keeps a program small in a large cluster. It also turns
// off the memory profile, which nothing reads and which takes more than a megabyte. Call it first.
func SetGCPercentAndStopMemProfile(percent int) {
	runtime.MemProfileRate = 0
	if _, set := os.LookupEnv("GOGC"); !set {
		debug.SetGCPercent(percent)
	}
}
