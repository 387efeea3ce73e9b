package reconcile

import (
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/gantry-lb/gantry/controller/reconcile/memory"
)

// errNotNow is how somebody's admission webhook refuses a write.
var errNotNow = apierrors.NewForbidden(schema.GroupResource{Resource: "services"}, "any", errors.New("not now"))

func TestAWorkerThatGetsNowhereIsSeen(t *testing.T) {
	now := time.Unix(10000, 0)
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	tests := map[string]struct {
		activity       activity
		unready, ended bool
	}{
		"idle for a day":                      {activity: activity{attempted: ago(24 * time.Hour), progressed: ago(24 * time.Hour)}},
		"work that has just come":             {activity: activity{busySince: ago(time.Second), attempted: ago(time.Hour), progressed: ago(time.Hour)}},
		"busy for a day, and getting on":      {activity: activity{busySince: ago(24 * time.Hour), attempted: ago(time.Second), progressed: ago(time.Second)}},
		"one request that hangs":              {activity: activity{busySince: ago(attemptTimeout), attempted: ago(time.Hour)}},
		"refused for a minute":                {activity: activity{busySince: ago(time.Minute), attempted: ago(time.Second), progressed: ago(time.Hour)}, unready: true},
		"refused for a day":                   {activity: activity{busySince: ago(24 * time.Hour), attempted: ago(lastDelay)}, unready: true},
		"stuck for a minute":                  {activity: activity{busySince: ago(time.Minute), attempted: ago(time.Hour)}, unready: true},
		"stuck for ten minutes":               {activity: activity{busySince: ago(10 * time.Minute)}, unready: true, ended: true},
		"stuck since long after work came":    {activity: activity{busySince: ago(time.Hour), attempted: ago(10 * time.Minute), progressed: ago(10 * time.Minute)}, unready: true, ended: true},
		"the longest reading of all Services": {activity: activity{busySince: ago(loadTimeout)}, unready: true},
	}
	for name, tc := range tests {
		for p := range phases {
			t.Run(fmt.Sprint(name, ", ", p), func(t *testing.T) {
				var all [phases]activity
				all[p] = tc.activity
				if err := judgeReadiness(all, now); (err != nil) != tc.unready {
					t.Errorf("readiness says %v", err)
				}
				if err := judgeLiveness(all, now); (err != nil) != tc.ended {
					t.Errorf("liveness says %v", err)
				}
			})
		}
	}
}

// TestAnAPIServerThatDoesNotAnswerMakesALeaderUnready keeps every write of the AddressLedger from arriving, and then lets it arrive.
func TestAnAPIServerThatDoesNotAnswerMakesALeaderUnready(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := memory.NewServer(nil)
		s.SetPool("p", pool("10.0.0.0/24"))
		var away atomic.Bool
		c := run(t, s, func(what string) memory.Weather { return memory.Weather{Lost: away.Load() && what == "ledger"} }, Options{})
		defer c.end()
		time.Sleep(time.Hour)
		if err := c.Ready(time.Now()); err != nil {
			t.Error("an idle leader:", err)
		}
		away.Store(true)
		s.Create(balanced("s"))
		time.Sleep(time.Minute)
		if c.Ready(time.Now()) == nil {
			t.Error("it counts as ready after a minute without progress")
		}
		time.Sleep(time.Hour)
		if err := c.Alive(time.Now()); err != nil {
			t.Error("it tries, and is to be restarted all the same:", err)
		}
		away.Store(false)
		time.Sleep(time.Minute)
		synctest.Wait()
		if err := c.Ready(time.Now()); err != nil {
			t.Error("when it works again:", err)
		}
	})
}
