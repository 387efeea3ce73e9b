package assign

import (
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/gantry-lb/gantry/api/names"
)

// LeaderAbsence is the time in which no controller led before this one. It is zero if no controller
// led before.
type LeaderAbsence struct{ Since, Until time.Time }

// minReportedWaitForLeaderDelay is how long a Service must have waited for a leader before its
// text says so. A planned change of leaders takes about a second.
const minReportedWaitForLeaderDelay = 3 * time.Second

// leaderAbsenceTextPrefix begins what the text of a Service says about the absence of a leader.
const leaderAbsenceTextPrefix = "; the Service waited "

// describeWaitOfService says how long the Service waited because no controller led. It is empty if
// another leader already knew the Service.
func (a LeaderAbsence) describeWaitOfService(s *corev1.Service) string {
	created := s.CreationTimestamp.Time // in whole seconds, rounded down
	if a.Since.IsZero() || created.Before(a.Since.Truncate(time.Second)) || hasOurStatusOrAnnotations(s) {
		return ""
	}
	wait := a.Until.Sub(created).Round(time.Second)
	if wait < minReportedWaitForLeaderDelay {
		return ""
	}
	return fmt.Sprintf("%s%s, since no controller led from %s to %s: look at the Deployment gantry-controller", leaderAbsenceTextPrefix, wait,
		a.Since.UTC().Format(time.TimeOnly), a.Until.UTC().Format(time.TimeOnly))
}

// keepPublishedWaitForLeaderText returns the text of a Decision. It keeps what the condition of the
// Service says about the absence of a leader, so that a later Decision with the same text writes
// nothing.
func keepPublishedWaitForLeaderText(s *corev1.Service, reason names.Reason, text string) string {
	c := meta.FindStatusCondition(s.Status.Conditions, names.ConditionAddressAssigned)
	if c != nil && c.Reason == string(reason) && strings.HasPrefix(c.Message, text+leaderAbsenceTextPrefix) {
		return c.Message
	}
	return text
}
