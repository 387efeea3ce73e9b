package option

import (
	"os"
	"runtime/debug"
)

// garbagePercent is how much garbage may lie beside what is in use before it is collected. Nearly all that is in use are cached
// objects, which change seldom, so that half of what is usual costs little and keeps both programs small in a large cluster.
const garbagePercent = 50

// CollectOften sets that, where the environment variable GOGC sets nothing.
func CollectOften() {
	if _, set := os.LookupEnv("GOGC"); !set {
		debug.SetGCPercent(garbagePercent)
	}
}
