package assign

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/controller/events"
	"github.com/gantry-lb/gantry/internal/view"
)

// rivalReportInterval is how long the condition of a Service names another program that has
// changed its addresses, and how often the event is repeated: a program that still runs writes
// again within minutes.
const rivalReportInterval = 10 * time.Minute

// startRivalCheck asks the API server who else writes the addresses of a Service. The cache does
// not keep that. It asks once in each rivalReportInterval.
func startRivalCheck(r *ServiceWorker, k view.ObjectKey, rec *serviceRecord) {
	if !rec.rivalCheckedAt.IsZero() && r.Now().Sub(rec.rivalCheckedAt) < rivalReportInterval {
		return
	}
	rec.rivalCheckedAt, rec.rivalWriter = r.Now(), ""
	r.apiTaskQueue.enqueueTask(&rivalCheckTask{k})
}

// rivalCheckTask finds another program that writes the addresses of a Service.
type rivalCheckTask struct{ service view.ObjectKey }

// runTask implements apiRequestTask.
func (c *rivalCheckTask) runTask(ctx context.Context, api WorkerAPI) taskResultHandler {
	s, err := api.ReadLiveService(ctx, c.service)
	return func(_ context.Context, r *ServiceWorker) {
		if err == nil && s != nil {
			reportRival(r, c.service, s)
		}
	}
}

// reportRival says by an event and in the condition which other program writes the addresses.
func reportRival(r *ServiceWorker, k view.ObjectKey, s *corev1.Service) {
	rec := r.recordByService[k]
	other, own := view.OtherStatusWriter(s)
	if rec == nil || other == nil || own != nil && other.Time.Add(contentionDetectionInterval).Before(own.Time.Time) {
		return
	}
	rec.rivalWriter = other.Manager
	text := describeRival(other.Manager)
	r.RecordEvent(s, corev1.EventTypeWarning, names.EventOtherController, events.TruncateNote(string(names.ReasonOtherController)+": "+text))
	r.Log.Warn(text, "service", k.String(), "reason", names.ReasonOtherController)
	r.workQueue.addChangedServices(k)
	r.workQueue.addChangedServiceAfter(k, rivalReportInterval)
}

func describeRival(manager string) string {
	return fmt.Sprintf("another program (%s) writes the addresses of this Service too: let only one serve it, by spec.loadBalancerClass for example", view.DescribeStatusWriter(manager))
}

// rivalText is what the condition says about another program; empty if none has written lately.
func (rec *serviceRecord) rivalText(now time.Time) string {
	if rec.rivalWriter == "" || now.Sub(rec.rivalCheckedAt) >= rivalReportInterval {
		return ""
	}
	return "; " + describeRival(rec.rivalWriter)
}
