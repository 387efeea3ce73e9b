package session_test

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/gantry-lb/gantry/speaker/bfd/session"
)

// link joins two machines in virtual time by a path that delays and loses packets. It keeps their order, as paths do for the
// packets of one flow: against an old packet that overtakes a new one RFC 5880 has no remedy without authentication.
type link struct {
	now     time.Time
	ends    [2]*session.Machine
	way     []travelling
	arrival [2]time.Time // of the last packet on its way there
	random  *rand.Rand
	delay   time.Duration // the longest
	run     int           // how many packets in a row may be lost
	lost    [2]int        // in a row
	loss    float64
	cut     bool
	downs   [2]int
	changed [2]time.Time // of the last change of state
}

type travelling struct {
	at     time.Time
	to     int
	packet session.Packet
}

// send puts what a machine sent on its way.
func (l *link) send(from int, out session.Output) {
	if out.Change != nil {
		l.changed[from] = l.now
		if out.Change.From == session.Up {
			l.downs[from]++
		}
	}
	for _, p := range out.Send {
		if l.cut || (l.lost[from] < l.run && l.random.Float64() < l.loss) {
			l.lost[from]++
			continue
		}
		l.lost[from] = 0
		at := l.now.Add(time.Duration(l.random.Int64N(int64(l.delay) + 1)))
		if at.Before(l.arrival[1-from]) {
			at = l.arrival[1-from]
		}
		l.arrival[1-from] = at
		l.way = append(l.way, travelling{at, 1 - from, p})
	}
}

// until runs the link to that time, or until check says so.
func (l *link) until(end time.Time, check func() bool) bool {
	for !check() {
		slices.SortStableFunc(l.way, func(a, b travelling) int { return a.at.Compare(b.at) })
		next, who := end, -1
		for i, m := range l.ends {
			if at := m.Next(); !at.IsZero() && !at.After(next) {
				next, who = at, i
			}
		}
		if len(l.way) > 0 && !l.way[0].at.After(next) { // a packet that arrives with a deadline is in time
			v := l.way[0]
			l.way = l.way[1:]
			l.now = v.at
			l.send(v.to, l.ends[v.to].Step(l.now, session.Received{Packet: v.packet}))
			continue
		}
		if who < 0 {
			l.now = end
			return check()
		}
		if next.After(l.now) {
			l.now = next
		}
		l.send(who, l.ends[who].Step(l.now, session.Tick{}))
	}
	return true
}

func (l *link) up() bool {
	return l.ends[0].View().State == session.Up && l.ends[1].View().State == session.Up
}

// draw draws a config.
func draw(t *rapid.T, name string) session.Config {
	interval := rapid.SampledFrom([]time.Duration{10 * ms, 20 * ms, 50 * ms, 100 * ms, 300 * ms, time.Second, 3 * time.Second})
	return session.Config{
		Transmit: interval.Draw(t, name+" transmit"), Receive: interval.Draw(t, name+" receive"),
		Multiplier: uint8(rapid.IntRange(2, 6).Draw(t, name+" multiplier")),
	}
}

// start joins two drawn machines.
func start(t *rapid.T) (*link, [2]session.Config) {
	configs := [2]session.Config{draw(t, "one"), draw(t, "other")}
	configs[rapid.IntRange(0, 1).Draw(t, "which")].Passive = rapid.Bool().Draw(t, "passive")
	random := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
	l := &link{now: epoch, random: random}
	// At most multiplier-1 intervals may pass in silence, and delay may differ by less than the rest: each packet comes
	// at most one interval after the last, so that with run lost in a row and the delay's spread the silence is
	// (run+1) x interval + delay.
	l.run = int(min(configs[0].Multiplier, configs[1].Multiplier)) - 2
	l.loss = rapid.SampledFrom([]float64{0, 0.1, 0.5, 1}).Draw(t, "loss")
	pace := func(from, to session.Config) time.Duration { return max(from.Transmit, to.Receive) }
	fastest := min(pace(configs[0], configs[1]), pace(configs[1], configs[0]))
	l.delay = time.Duration(rapid.Float64Range(0, 0.9).Draw(t, "delay") * float64(fastest))
	for i, c := range configs {
		l.ends[i] = session.New(uint32(i+1), c, rand.New(rand.NewPCG(random.Uint64(), 0)), l.now)
	}
	return l, configs
}

// TestNoFalseDown: what a path does within the bounds of the detection time never takes a session down, also while the
// intervals change.
func TestNoFalseDown(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l, _ := start(t)
		run := l.run
		l.run = 0 // loss may delay coming up without end
		if !l.until(epoch.Add(time.Minute), l.up) {
			t.Fatalf("not up after a minute without loss: %+v, %+v", l.ends[0].View(), l.ends[1].View())
		}
		l.until(l.now.Add(10*time.Second), func() bool { return false })
		l.run = run
		l.downs = [2]int{}
		l.until(l.now.Add(2*time.Minute), func() bool { return false })
		if l.downs != [2]int{} || !l.up() {
			t.Fatalf("down %v times; %+v, %+v", l.downs, l.ends[0].View(), l.ends[1].View())
		}
	})
}

// TestAChangeOfIntervalsKeepsASessionUp, whatever the change, on a path that delays.
func TestAChangeOfIntervalsKeepsASessionUp(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l, _ := start(t)
		l.run, l.delay = 0, min(l.delay, 4*ms)
		l.until(epoch.Add(time.Minute), l.up)
		l.until(l.now.Add(10*time.Second), func() bool { return false })
		l.downs = [2]int{}
		for range rapid.IntRange(1, 4).Draw(t, "changes") {
			i := rapid.IntRange(0, 1).Draw(t, "end")
			l.send(i, l.ends[i].Step(l.now, session.Configure{Config: draw(t, "changed")}))
			l.until(l.now.Add(time.Duration(rapid.Int64Range(0, int64(5*time.Second)).Draw(t, "pause"))), func() bool { return false })
		}
		l.until(l.now.Add(30*time.Second), func() bool { return false })
		if l.downs != [2]int{} || !l.up() {
			t.Fatalf("down %v times; %+v, %+v", l.downs, l.ends[0].View(), l.ends[1].View())
		}
		for i := range l.ends {
			if v := l.ends[i].View(); v.Polling {
				t.Fatalf("still polling: %+v", v)
			}
		}
	})
}

// TestDetectionIsInTime: after a cut each side is down within its detection time, and not before that has passed since it
// heard something.
func TestDetectionIsInTime(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l, configs := start(t)
		l.run = 0
		if !l.until(epoch.Add(time.Minute), l.up) {
			t.Fatal("not up after a minute without loss")
		}
		l.until(l.now.Add(10*time.Second), func() bool { return false })
		cut := l.now
		l.cut = true
		l.until(cut.Add(2*time.Minute), func() bool { return false })
		for i, m := range l.ends {
			bound := time.Duration(configs[1-i].Multiplier)*max(configs[i].Receive, configs[1-i].Transmit) + l.delay
			if d := l.changed[i].Sub(cut); m.View().State != session.Down || d > bound {
				t.Fatalf("end %d is %s after %s, want Down within %s", i, m.View().State, d, bound)
			}
		}
		l.cut = false
		if !l.until(l.now.Add(time.Minute), l.up) {
			t.Fatalf("not up again after a minute: %+v, %+v", l.ends[0].View(), l.ends[1].View())
		}
	})
}

// TestLossOnlyDelays: with any loss short of all the session comes up in the end.
func TestLossOnlyDelays(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l, _ := start(t)
		l.run, l.loss = 1<<30, 0.5
		if !l.until(epoch.Add(10*time.Minute), l.up) {
			t.Fatalf("not up in ten minutes with half of the packets lost: %+v, %+v", l.ends[0].View(), l.ends[1].View())
		}
	})
}
