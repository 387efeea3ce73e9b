package reconcile

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/internal/configuration"
	"github.com/gantry-lb/gantry/internal/latest"
	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/agent"
	"github.com/gantry-lb/gantry/speaker/bgp"
	"github.com/gantry-lb/gantry/speaker/bgp/message"
	"github.com/gantry-lb/gantry/speaker/plan"
)

// oneChangingSession is an established session that reports a change whenever the test says so.
type oneChangingSession struct{ changed *latest.Wake }

func (s *oneChangingSession) StatusChanged() <-chan struct{} { return s.changed.C() }

func (s *oneChangingSession) Status() []bgp.PeerSessionStatus {
	return []bgp.PeerSessionStatus{{PeerName: "tor", State: bgp.Established, StateSince: time.Now(), CarriedFamilies: []message.AFI{message.FamilyIPv4}}}
}

// runBGPStatusWriter runs a writer whose API server needs this long to create an object. It must be
// called in a bubble of synctest.
func runBGPStatusWriter(t *testing.T, creationDelay time.Duration) (*BGPStatusWriter, client.Client, *oneChangingSession) {
	t.Helper()
	scheme, err := configuration.NewScheme()
	if err != nil {
		t.Fatal(err)
	}
	api := fake.NewClientBuilder().WithScheme(scheme).WithStatusSubresource(&v1alpha1.BGPSession{}, &v1beta1.ServiceBGPStatus{}).
		WithInterceptorFuncs(interceptor.Funcs{Create: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.CreateOption) error {
			time.Sleep(creationDelay)
			return c.Create(ctx, o, opts...)
		}}).Build()
	sessions := &oneChangingSession{latest.NewWake()}
	w := NewBGPStatusWriter(BGPStatusWriterOptions{
		Client: api, Sessions: sessions, Log: slog.New(slog.DiscardHandler), Now: time.Now, Self: "node1", Namespace: names.Namespace, ServiceBGPStatusLimit: 500,
		PodOwnerReferences: func(context.Context) []metav1.OwnerReference { return nil }, ServiceReference: func(view.ObjectKey) *corev1.Service { return nil },
	})
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	go func() { _ = w.Run(ctx) }()
	return w, api, sessions
}

// TestBGPStatusIsWrittenWhileSessionsChangeAllTheTime lets changes follow each other faster than
// they are gathered, as those of many sessions do.
func TestBGPStatusIsWrittenWhileSessionsChangeAllTheTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, api, sessions := runBGPStatusWriter(t, 0)
		w.ObserveStatus(agent.Status{})
		for range 20 {
			sessions.changed.Signal()
			time.Sleep(sessionChangeCoalesceDelay / 2)
		}
		var list v1alpha1.BGPSessionList
		if err := api.List(t.Context(), &list); err != nil || len(list.Items) != 1 {
			t.Errorf("%d sessions are written after two seconds of changes, want 1 (%v)", len(list.Items), err)
		}
	})
}

// TestManyServiceBGPStatusesAreWrittenAtOnce lets a router return that gets many Services.
func TestManyServiceBGPStatusesAreWrittenAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, api, _ := runBGPStatusWriter(t, 50*time.Millisecond)
		var all []*plan.BGPVerdict
		for i := range 400 {
			all = append(all, &plan.BGPVerdict{
				Service:   view.ObjectKey{Namespace: "default", Name: fmt.Sprintf("web-%03d", i)},
				Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, Peers: []string{"tor"}, Reason: names.ReasonAnnounced,
			})
		}
		w.ObserveStatus(agent.Status{Plan: plan.Plan{BGPVerdicts: plan.NewSortedList(all...)}})
		time.Sleep(2 * time.Second)
		var list v1beta1.ServiceBGPStatusList
		if err := api.List(t.Context(), &list); err != nil || len(list.Items) != len(all) {
			t.Errorf("%d Services are reported after two seconds, want %d (%v)", len(list.Items), len(all), err)
		}
	})
}
