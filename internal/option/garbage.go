package option

import (
	"os"
	"runtime"
	"runtime/debug"
)

// LimitGarbage sets how much garbage may lie beside what is in use before it is collected, in percent, where the environment variable
// GOGC does not. Nearly all that is in use changes seldom, so that less than what is usual costs little and keeps a program
// small in a large cluster. The runtime keeps no profile of memory, which nothing reads: that alone takes more than a megabyte. It is to
// be called first.
func LimitGarbage(percent int) {
	runtime.MemProfileRate = 0
	if _, set := os.LookupEnv("GOGC"); !set {
		debug.SetGCPercent(percent)
	}
}
