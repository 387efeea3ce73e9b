package option

import (
	"os"
	"runtime"
	"runtime/debug"
)

// garbagePercent is how much garbage may lie beside what is in use before it is collected. Nearly all that is in use are cached
// objects, which change seldom, so that half of what is usual costs little and keeps both programs small in a large cluster.
const garbagePercent = 50

// CollectOften sets that, where the environment variable GOGC sets nothing. The runtime keeps no profile of memory, which nothing
// reads: that alone takes more than a megabyte. It is to be called first.
func CollectOften() {
	runtime.MemProfileRate = 0
	if _, set := os.LookupEnv("GOGC"); !set {
		debug.SetGCPercent(garbagePercent)
	}
}
