package announcedcondition

import (
	"context"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/controller/configurationreader"
	"github.com/gantry-lb/gantry/internal/advertise"
	"github.com/gantry-lb/gantry/internal/view"
)

// maxPredictionDelay is how long the first addresses of a Service that no speaker will announce may
// wait for the configuration: a reading begins after EditCollectDelay at most.
const maxPredictionDelay = 4 * configurationreader.EditCollectDelay

// PredictUnannouncedCondition returns the condition of a Service that is about to get its first
// addresses, if it is certain that no speaker will announce them. It is written together with the
// addresses, so that a Service that waits for an advertisement or for Pods costs one write instead
// of two. A wrong prediction is corrected like any other change. The latest changes of the
// configuration may bring the advertisement: it may have been applied together with the Service.
// So if no speaker will announce the Service, PredictUnannouncedCondition first waits until these
// changes are read, for maxPredictionDelay at most.
func (r *ConditionWriter) PredictUnannouncedCondition(ctx context.Context, s *corev1.Service, assigned []netip.Addr) (metav1.Condition, bool) {
	var none metav1.Condition
	if meta.FindStatusCondition(s.Status.Conditions, names.ConditionAnnounced) != nil {
		return none, false
	}
	// The order matters: the configuration has all changes that were read before.
	isChangeUnread := r.ConfigurationReader.HasUnreadChange()
	why := r.predictUnannounced(ctx, s, assigned)
	if why.IsSet() && isChangeUnread {
		awaiting, cancel := context.WithTimeout(ctx, maxPredictionDelay)
		defer cancel()
		r.ConfigurationReader.AwaitUnreadChanges(awaiting)
		if r.ConfigurationReader.HasUnreadChange() {
			return none, false
		}
		why = r.predictUnannounced(ctx, s, assigned)
	}
	// The pool may be newer than the snapshot.
	if !why.IsSet() || why.Reason == names.ReasonAddressOutsidePools {
		return none, false
	}
	return metav1.Condition{
		Type: names.ConditionAnnounced, Status: metav1.ConditionFalse, Reason: string(why.Reason), Message: why.Text, ObservedGeneration: s.Generation,
	}, true
}

// predictUnannounced says why no speaker will announce a Service that is about to get its first
// addresses. Nothing is set if that is not certain.
func (r *ConditionWriter) predictUnannounced(ctx context.Context, s *corev1.Service, assigned []netip.Addr) names.Explanation {
	config, _ := r.ConfigurationReader.LatestConfiguration()
	if config == nil {
		return names.Explanation{}
	}
	v := view.FromService(s)
	v.AssignedAddresses = assigned
	endpoints, reports, err := r.announcementStateReader.readEndpointsAndReports(ctx, config, &v)
	if err != nil || len(reports.summarizeAnnouncement(assigned).announcedAddresses) > 0 {
		return names.Explanation{}
	}
	svc := advertise.ServiceFromView(&v)
	why := advertise.ExplainUnannouncedService(config.Snapshot, &svc, config.Nodes)
	if !why.IsSet() && !endpoints.AnyServing {
		return explainNoEndpoints()
	}
	return why
}
