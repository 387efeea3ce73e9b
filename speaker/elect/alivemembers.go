package elect

import "slices"

// ListAliveMembers returns the members that are not declared dead, this node included, sorted.
func ListAliveMembers(m *Machine) []string {
	return slices.DeleteFunc(slices.Clone(m.memberNames), func(n string) bool { return !m.isAlive(n) })
}
