package elect

import (
	"slices"
	"time"
)

// ListAliveMembers returns the members that are not declared dead, this node included, sorted.
func ListAliveMembers(m *Machine) []string {
	return slices.DeleteFunc(slices.Clone(m.memberNames), func(n string) bool { return !m.isAlive(n) })
}

// DeathAgreedSince returns since when the witnesses of a member agree that it is dead, zero if they
// do not. A member that was declared dead by mistake before is declared dead later than that.
func DeathAgreedSince(m *Machine, member string) time.Time {
	return m.liveness.deathAgreedSinceByNode[member]
}
