package reconcile

import (
	"strconv"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/controller/reconcile/memory"
)

// cooling is a pool whose addresses wait for an hour.
func cooling(addresses ...string) v1beta1.IPAddressPoolSpec {
	p := pool(addresses...)
	p.Gantry = &v1beta1.PoolExtension{Cooldown: &metav1.Duration{Duration: time.Hour}}
	return p
}

func TestACoolDownOutlivesTheController(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := memory.NewServer(nil)
		s.SetPool("p", cooling("192.0.2.0/30"))
		c := run(t, s, nil, Options{})
		for _, name := range []string{"a", "b"} {
			s.Create(balanced(name))
			time.Sleep(time.Second)
		}
		s.Delete(key("a"))
		time.Sleep(2 * time.Second)
		c.end()
		l := s.Ledger(names.WithheldLedger)
		if l == nil || len(l.Spec.Withheld) != 1 || l.Spec.Withheld[0].Address != "192.0.2.0" || l.Spec.Withheld[0].Name != "a" {
			t.Fatalf("the object says %+v", l)
		}
		s.Delete(key("b")) // nobody sees it
		c = run(t, s, nil, Options{})
		time.Sleep(time.Second)
		s.Create(balanced("c"))
		time.Sleep(time.Second)
		want(t, s, "c", "192.0.2.1", names.ReasonAssigned)
		s.Create(balanced("a"))
		time.Sleep(time.Second)
		want(t, s, "a", "192.0.2.0", names.ReasonAssigned)
		s.Delete(key("a"))
		time.Sleep(time.Second)
		for _, name := range []string{"d", "e", "f"} {
			s.Create(balanced(name))
			time.Sleep(time.Second)
		}
		want(t, s, "e", "192.0.2.3", names.ReasonAssigned)
		want(t, s, "f", "", names.ReasonPoolExhausted)
		time.Sleep(time.Hour)
		want(t, s, "f", "192.0.2.0", names.ReasonAssigned)
		if l := s.Ledger(names.WithheldLedger); len(l.Spec.Withheld) != 0 {
			t.Errorf("after it is over the object says %+v", l.Spec.Withheld)
		}
		c.end()
	})
}

// TestACrowdThatGoesIsRememberedInFewWrites: a thousand Services are deleted, and each address cools down.
func TestACrowdThatGoesIsRememberedInFewWrites(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const n = 1000
		s := memory.NewServer(nil)
		s.SetPool("p", cooling("10.0.0.0/16"))
		c := run(t, s, nil, Options{})
		defer c.end()
		for i := range n {
			s.Create(balanced("s" + strconv.Itoa(i)))
		}
		time.Sleep(5 * time.Second)
		for i := range n {
			s.Delete(key("s" + strconv.Itoa(i)))
			time.Sleep(time.Millisecond)
		}
		time.Sleep(5 * time.Second)
		if l := s.Ledger(names.WithheldLedger); len(l.Spec.Withheld) != n {
			t.Errorf("%d addresses are remembered, want %d", len(l.Spec.Withheld), n)
		}
		if w := s.Writes("withheld"); w > 4 {
			t.Errorf("%d writes within 6 s, want one a second at most", w)
		}
	})
}

// TestAnObjectThatIsLostOrWrongIsMadeAnew: what it said is gone, and nothing else is.
func TestAnObjectThatIsLostOrWrongIsMadeAnew(t *testing.T) {
	for name, harm := range map[string]func(*memory.Server){
		"lost": (*memory.Server).LoseLedger,
		"wrong": func(s *memory.Server) {
			s.SetWithheld(v1alpha1.WithheldAddress{Address: "here", Reason: "CoolingDown"})
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				s := memory.NewServer(nil)
				s.SetPool("p", cooling("192.0.2.0/30"))
				c := run(t, s, nil, Options{})
				defer c.end()
				for _, name := range []string{"a", "b"} {
					s.Create(balanced(name))
					time.Sleep(time.Second)
				}
				s.Delete(key("a"))
				time.Sleep(2 * time.Second)
				harm(s)
				s.Delete(key("b"))
				time.Sleep(5 * time.Second)
				s.Create(balanced("c"))
				time.Sleep(5 * time.Second)
				want(t, s, "c", "192.0.2.2", names.ReasonAssigned)
				if l := s.Ledger(names.WithheldLedger); l == nil || len(l.Spec.Withheld) != 2 {
					t.Errorf("the object says %+v", l)
				}
			})
		})
	}
}
