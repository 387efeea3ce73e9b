package reconcile

import (
	"strconv"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/controller/reconcile/memory"
)

// probing is a pool whose addresses are asked for first.
func probing(addresses ...string) v1beta1.IPAddressPoolSpec {
	p := pool(addresses...)
	p.Gantry = &v1beta1.PoolExtension{Probe: &v1beta1.PoolProbe{Quarantine: &metav1.Duration{Duration: time.Hour}}}
	return p
}

// open checks which addresses are asked for.
func open(t *testing.T, s *memory.Server, want ...string) {
	t.Helper()
	var got []string
	for _, p := range s.AllProbes() {
		got = append(got, p.Name)
	}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("the speakers are asked for %v, want %v", got, want)
	}
}

func TestAnAddressIsAskedForBeforeItIsGiven(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := memory.NewServer(nil)
		s.SetPool("p", probing("192.0.2.0/30"))
		told := &recorder{}
		c := run(t, s, nil, Options{Tell: told.tell})
		s.Create(balanced("a"))
		time.Sleep(time.Second)
		want(t, s, "a", "", names.ReasonProbing)
		open(t, s, "192.0.2.0")
		if p := s.AllProbes()[0].Spec; p.Pool != "p" || p.Service.Name != "a" || p.Address != "192.0.2.0" {
			t.Errorf("the question is %+v", p)
		}
		s.AnswerProbe("192.0.2.0", v1alpha1.OutcomeAnswered, "02:00:00:00:00:01")
		c.Answered()
		time.Sleep(time.Second)
		want(t, s, "a", "", names.ReasonProbing)
		open(t, s, "192.0.2.1")
		s.AnswerProbe("192.0.2.1", v1alpha1.OutcomeSilent, "")
		c.Answered()
		time.Sleep(time.Second)
		want(t, s, "a", "192.0.2.1", names.ReasonAssigned)
		open(t, s)
		events := told.of("a")
		if len(events) != 2 || !strings.Contains(events[0], "Quarantined: 02:00:00:00:00:01 answered for 192.0.2.0") || !strings.Contains(events[1], "Assigned") {
			t.Errorf("the events are %q", events)
		}
		if w := s.Writes("service"); w != 3 {
			t.Errorf("%d writes of the Service, want two that tell what is asked and one with the address", w)
		}
		time.Sleep(2 * time.Second)
		c.end()

		// The quarantine outlives the controller; what was asked in its life before does not.
		s.Create(balanced("b"))
		c = run(t, s, nil, Options{})
		defer c.end()
		time.Sleep(time.Second)
		open(t, s, "192.0.2.2")
		s.Delete(key("b"))
		time.Sleep(time.Second)
		open(t, s)
		time.Sleep(time.Hour)
		s.Create(balanced("b"))
		time.Sleep(time.Second)
		open(t, s, "192.0.2.0")
	})
}

func TestWhatIsLeftOfAnotherLifeCountsForNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := memory.NewServer(nil)
		s.SetPool("p", probing("192.0.2.0/30"))
		c := run(t, s, nil, Options{})
		s.Create(balanced("a"))
		s.Create(balanced("b"))
		time.Sleep(time.Second)
		open(t, s, "192.0.2.0", "192.0.2.1")
		c.end()
		s.AnswerProbe("192.0.2.0", v1alpha1.OutcomeSilent, "")
		s.Delete(key("b"))
		time.Sleep(time.Hour)
		c = run(t, s, nil, Options{})
		defer c.end()
		time.Sleep(time.Second)
		want(t, s, "a", "", names.ReasonProbing)
		open(t, s, "192.0.2.0")
		// Nobody answers, and somebody deletes the question: it is asked again.
		if err := c.client.DeleteProbe(t.Context(), "192.0.2.0"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		open(t, s, "192.0.2.0")
		s.AnswerProbe("192.0.2.0", v1alpha1.OutcomeSilent, "")
		c.Answered()
		time.Sleep(time.Second)
		want(t, s, "a", "192.0.2.0", names.ReasonAssigned)
	})
}

func TestACrowdIsAskedForSideBySide(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const n = 500
		s := memory.NewServer(nil)
		s.SetPool("p", probing("10.0.0.0/16"))
		c := run(t, s, func(what string) memory.Weather {
			if what == "probe" && time.Now().UnixNano()%7 == 0 {
				return memory.Weather{Out: time.Millisecond, Unanswered: true}
			}
			return memory.Weather{Out: time.Millisecond}
		}, Options{})
		defer c.end()
		for i := range n {
			s.Create(balanced("s" + strconv.Itoa(i)))
		}
		for range 60 {
			time.Sleep(time.Second)
			for _, p := range s.AllProbes() {
				outcome := v1alpha1.OutcomeSilent
				if strings.HasSuffix(p.Name, "7") {
					outcome = v1alpha1.OutcomeAnswered
				}
				s.AnswerProbe(p.Name, outcome, "somebody")
			}
			c.Answered()
		}
		given := map[string]bool{}
		for i := range n {
			a := address(s.Service(key("s" + strconv.Itoa(i))))
			if !a.IsValid() || given[a.String()] || strings.HasSuffix(a.String(), "7") {
				t.Errorf("s%d has %v", i, a)
			}
			given[a.String()] = true
		}
		open(t, s)
	})
}
