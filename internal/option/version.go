package option

import "runtime/debug"

// ModuleVersion returns the version of the module. It includes the revision if the build had a
// repository.
func ModuleVersion() string {
	b, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	return b.Main.Version
}
