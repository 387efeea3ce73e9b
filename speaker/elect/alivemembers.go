package elect

import (
	"slices"
	"time"
)

// ListAliveMembers returns the members that are not declared dead, this node included, sorted.
func ListAliveMembers(m *Machine) []string {
	return slices.DeleteFunc(slices.Clone(m.memberNames), func(n string) bool { return !m.isAlive(n) })
}

// SilenceReportedSince returns since when witnesses have reported that the member is silent, zero
// if none does. A member that was declared dead by mistake before is declared dead later than that.
func SilenceReportedSince(m *Machine, member string) time.Time {
	if len(m.liveness.reportedNoncesBySilentNode[member]) == 0 {
		return time.Time{}
	}
	return m.liveness.suspectedSinceByNode[member]
}
