package session_test

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/speaker/bfd/session"
)

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

const (
	ours, theirs = 11, 22
	ms           = time.Millisecond
)

func config() session.Config {
	return session.Config{Transmit: 50 * ms, Receive: 100 * ms, Multiplier: 3}
}

// talk is a Machine and the time of a conversation with it.
type talk struct {
	t   *testing.T
	m   *session.Machine
	now time.Time
	out session.Output
}

func begin(t *testing.T, c session.Config) *talk {
	return &talk{t: t, m: session.New(ours, c, rand.New(rand.NewPCG(1, 2)), epoch), now: epoch}
}

// step steps the machine now.
func (k *talk) step(in session.Input) session.Output {
	k.out = k.m.Step(k.now, in)
	return k.out
}

// hear is a packet of the neighbour, with the usual fields filled in.
func (k *talk) hear(p session.Packet) session.Output {
	if p.Multiplier == 0 {
		p.Multiplier = 4
	}
	if p.Mine == 0 {
		p.Mine = theirs
	}
	if p.DesiredTx == 0 {
		p.DesiredTx = 60 * ms
	}
	if p.RequiredRx == 0 {
		p.RequiredRx = 70 * ms
	}
	return k.step(session.Received{Packet: p})
}

// pass lets time go by and returns what was sent.
func (k *talk) pass(d time.Duration) []session.Packet {
	k.t.Helper()
	end, sent := k.now.Add(d), []session.Packet(nil)
	for range 100000 {
		next := k.m.Next()
		if next.IsZero() || next.After(end) {
			k.now = end
			return sent
		}
		if next.After(k.now) {
			k.now = next
		}
		sent = append(sent, k.step(session.Tick{}).Send...)
	}
	k.t.Fatal("the machine wants to be stepped without end")
	return nil
}

// up brings the session Up, polls included.
func (k *talk) up() {
	k.t.Helper()
	k.pass(0)
	k.hear(session.Packet{State: session.Down, DesiredTx: time.Second})
	k.hear(session.Packet{State: session.Init, Yours: ours, DesiredTx: time.Second})
	k.want("the neighbour is in Init", session.Up)
	k.pass(50 * ms)
	k.hear(session.Packet{State: session.Up, Yours: ours, Final: true})
	if k.m.View().Polling {
		k.t.Fatal("the Final did not end the Poll Sequence")
	}
}

func (k *talk) want(sentence string, s session.State) {
	k.t.Helper()
	if v := k.m.View(); v.State != s {
		k.t.Fatalf("%s: state %s, want %s", sentence, v.State, s)
	}
}

// last is the last packet of the last step.
func (k *talk) last(sentence string) session.Packet {
	k.t.Helper()
	if len(k.out.Send) == 0 {
		k.t.Fatalf("%s: nothing was sent", sentence)
	}
	return k.out.Send[len(k.out.Send)-1]
}

// TestStates is the table of RFC 5880 section 6.8.6.
func TestStates(t *testing.T) {
	type table map[session.State]session.State // received state -> state after it
	for from, to := range map[session.State]table{
		session.Down: {session.AdminDown: session.Down, session.Down: session.Init, session.Init: session.Up, session.Up: session.Down},
		session.Init: {session.AdminDown: session.Down, session.Down: session.Init, session.Init: session.Up, session.Up: session.Up},
		session.Up:   {session.AdminDown: session.Down, session.Down: session.Down, session.Init: session.Up, session.Up: session.Up},
		session.AdminDown: {
			session.AdminDown: session.AdminDown, session.Down: session.AdminDown, session.Init: session.AdminDown, session.Up: session.AdminDown,
		},
	} {
		for received, want := range to {
			k := begin(t, config())
			switch from {
			case session.Init:
				k.hear(session.Packet{State: session.Down})
			case session.Up:
				k.up()
			case session.AdminDown:
				k.step(session.Stop{})
			}
			k.want("to begin with", from)
			k.hear(session.Packet{State: received, Yours: ours})
			k.want(from.String()+" hears "+received.String(), want)
			if told := k.out.Change != nil; told != (from != want) {
				t.Errorf("%s hears %s: change told: %v", from, received, told)
			}
		}
	}
}

func TestASessionThatIsNotUpIsSlow(t *testing.T) {
	k := begin(t, config())
	for _, p := range k.pass(60 * time.Second) {
		if p.DesiredTx != time.Second || p.Yours != 0 || p.State != session.Down || p.Poll || p.Final || p.Independent || p.Demand || p.RequiredEchoRx != 0 {
			t.Fatalf("sent %+v", p)
		}
	}
	if n := len(begin(t, config()).pass(60 * time.Second)); n < 60 || n > 81 {
		t.Errorf("%d packets in a minute, want one in 0.75 to 1 s", n)
	}
}

func TestJitter(t *testing.T) {
	k := begin(t, config())
	k.up()
	k.hear(session.Packet{State: session.Up, Yours: ours, DesiredTx: time.Hour, RequiredRx: 40 * ms})
	var gaps []time.Duration
	last := k.now
	for len(gaps) < 2000 {
		k.now = k.m.Next()
		if len(k.step(session.Tick{}).Send) > 0 {
			gaps, last = append(gaps, k.now.Sub(last)), k.now
		}
	}
	shortest, longest := time.Hour, time.Duration(0)
	for _, g := range gaps[1:] {
		shortest, longest = min(shortest, g), max(longest, g)
	}
	// Section 6.8.7: the interval of 50 ms is reduced by up to 25 %; both ends are come near in 2,000 draws.
	if shortest < 37500*time.Microsecond || shortest > 38*ms || longest > 50*ms || longest < 49500*time.Microsecond {
		t.Errorf("packets are %s to %s apart, want 37.5 to 50 ms", shortest, longest)
	}
}

func TestDetectionTime(t *testing.T) {
	for sentence, tc := range map[string]struct {
		theirTx    time.Duration
		multiplier uint8
		want       time.Duration
	}{
		"the neighbour sends slower than we can receive": {150 * ms, 4, 600 * ms},
		"it would send faster":                           {10 * ms, 2, 200 * ms},
	} {
		k := begin(t, config())
		k.up()
		k.hear(session.Packet{State: session.Up, Yours: ours, DesiredTx: tc.theirTx, Multiplier: tc.multiplier})
		k.pass(tc.want - time.Nanosecond)
		k.want(sentence+", just before", session.Up)
		k.pass(time.Nanosecond)
		k.want(sentence, session.Down)
		if p := k.last(sentence); p.Diagnostic != session.DetectionExpired || p.Yours != 0 || p.DesiredTx != time.Second {
			t.Errorf("%s: sent %+v, want the diagnostic, no discriminator of a neighbour that is gone (6.8.1), slow rate", sentence, p)
		}
		if c := k.out.Change; c == nil || c.Cause != session.CauseDetectionExpired {
			t.Errorf("%s: change %+v", sentence, c)
		}
	}
}

// TestAPacketThatWaitedIsInTime: the process was held up, and finds a packet in the socket after the deadline.
func TestAPacketThatWaitedIsInTime(t *testing.T) {
	k := begin(t, config())
	k.up()
	k.now = k.now.Add(time.Minute)
	k.hear(session.Packet{State: session.Up, Yours: ours})
	k.step(session.Tick{})
	k.want("after a pause", session.Up)
}

func TestAPollIsAnsweredAtOnce(t *testing.T) {
	k := begin(t, config())
	k.up()
	k.hear(session.Packet{State: session.Up, Yours: ours, Poll: true})
	if p := k.last("a Poll came"); !p.Final || p.Poll || p.State != session.Up {
		t.Errorf("answered %+v, want Final and no Poll", p)
	}
}

// TestLongerIntervalsWaitForTheAnswer and the next are RFC 5880 section 6.8.3.
func TestLongerIntervalsWaitForTheAnswer(t *testing.T) {
	k := begin(t, config())
	k.up()
	slower := config()
	slower.Transmit = 500 * ms
	k.step(session.Configure{Config: slower})
	if p := k.last("a longer interval"); !p.Poll || p.DesiredTx != 500*ms {
		t.Errorf("sent %+v, want the new interval with Poll, before its time", p)
	}
	if d := k.m.View().Transmit; d != 70*ms {
		t.Errorf("sends every %s before the answer, want the former 70 ms", d)
	}
	for _, p := range k.pass(200 * ms) {
		if !p.Poll {
			t.Errorf("sent %+v without Poll before the answer", p)
		}
	}
	k.hear(session.Packet{State: session.Up, Yours: ours, Final: true})
	if d := k.m.View().Transmit; d != 500*ms {
		t.Errorf("sends every %s after the answer, want 500 ms", d)
	}
}

func TestAShorterReceiveIntervalWaitsForTheAnswer(t *testing.T) {
	k := begin(t, config())
	k.up()
	k.hear(session.Packet{State: session.Up, Yours: ours, DesiredTx: 10 * ms})
	faster := config()
	faster.Receive = 20 * ms
	k.step(session.Configure{Config: faster})
	if p := k.last("a shorter interval"); !p.Poll || p.RequiredRx != 20*ms {
		t.Errorf("sent %+v, want the new interval with Poll", p)
	}
	if d := k.m.View().Detection; d != 400*ms {
		t.Errorf("waits %s before the answer, want the former 4 x 100 ms", d)
	}
	k.hear(session.Packet{State: session.Up, Yours: ours, DesiredTx: 10 * ms, Final: true})
	if d := k.m.View().Detection; d != 80*ms {
		t.Errorf("waits %s after the answer, want 4 x 20 ms", d)
	}
}

func TestASecondChangeDuringAPoll(t *testing.T) {
	k := begin(t, config())
	k.up()
	for _, tx := range []time.Duration{500 * ms, 900 * ms} {
		c := config()
		c.Transmit = tx
		k.step(session.Configure{Config: c})
	}
	k.hear(session.Packet{State: session.Up, Yours: ours, Final: true})
	if v := k.m.View(); !v.Polling || v.Transmit != 70*ms {
		t.Fatalf("the first answer ended both sequences: %+v", v)
	}
	k.hear(session.Packet{State: session.Up, Yours: ours, Final: true})
	if !k.m.View().Polling {
		t.Fatal("a second answer to the first sequence ended the second, of which nothing was sent")
	}
	k.pass(70 * ms)
	k.hear(session.Packet{State: session.Up, Yours: ours, Final: true})
	if v := k.m.View(); v.Polling || v.Transmit != 900*ms {
		t.Errorf("after the second answer: %+v, want 900 ms", v)
	}
}

func TestAFinalThatNobodyAskedFor(t *testing.T) {
	k := begin(t, config())
	k.up()
	before := k.m.View()
	k.hear(session.Packet{State: session.Up, Yours: ours, Final: true})
	if k.m.View() != before || len(k.out.Send) != 0 {
		t.Errorf("a stray Final made %+v of %+v", k.m.View(), before)
	}
}

func TestANeighbourThatNeedsASlowerRate(t *testing.T) {
	k := begin(t, config())
	k.up()
	k.hear(session.Packet{State: session.Up, Yours: ours, RequiredRx: 400 * ms, DesiredTx: 10 * time.Second})
	if n := len(k.pass(4 * time.Second)); n < 9 || n > 14 {
		t.Errorf("%d packets in 4 s to a neighbour that takes one in 400 ms", n)
	}
	k.hear(session.Packet{State: session.Up, Yours: ours, RequiredRx: 10 * ms, DesiredTx: 10 * time.Second})
	if n := len(k.pass(time.Second)); n < 20 || n > 27 {
		t.Errorf("%d packets in 1 s once it takes more than our 50 ms, want the change to act at once", n)
	}
	k.step(session.Received{Packet: session.Packet{State: session.Up, Mine: theirs, Yours: ours, Multiplier: 4, DesiredTx: 10 * time.Second}})
	if sent := k.pass(5 * time.Second); len(sent) != 0 {
		t.Errorf("%d periodic packets to a neighbour that wants none (Required Min RX 0)", len(sent))
	}
}

func TestDemandOfTheNeighbour(t *testing.T) {
	k := begin(t, config())
	k.up()
	demand := session.Packet{State: session.Up, Yours: ours, Demand: true, DesiredTx: 10 * time.Second}
	k.hear(demand)
	if n := len(k.pass(5 * time.Second)); n != 0 {
		t.Errorf("%d periodic packets to a neighbour in demand mode (6.8.7)", n)
	}
	demand.Poll = true
	k.hear(demand)
	if !k.last("it polls").Final {
		t.Error("its Poll was not answered")
	}
	slower := config()
	slower.Receive = 200 * ms
	k.step(session.Configure{Config: slower})
	if n := len(k.pass(time.Second)); n == 0 {
		t.Error("no Poll is sent to a neighbour in demand mode")
	}
	demand.Poll, demand.Final = false, true
	k.hear(demand)
	if n := len(k.pass(5 * time.Second)); n != 0 {
		t.Errorf("%d periodic packets after the Poll Sequence", n)
	}
	demand.Final, demand.Demand = false, false
	k.hear(demand)
	if n := len(k.pass(time.Second)); n < 10 {
		t.Errorf("%d packets in a second after demand mode ended", n)
	}
}

func TestPassive(t *testing.T) {
	c := config()
	c.Passive = true
	k := begin(t, c)
	if n := len(k.pass(time.Minute)); n != 0 {
		t.Fatalf("%d packets before the neighbour's first", n)
	}
	k.hear(session.Packet{State: session.Down, DesiredTx: time.Second})
	if p := k.last("the neighbour began"); p.State != session.Init || p.Yours != theirs {
		t.Errorf("answered %+v, want Init at once", p)
	}
	k.hear(session.Packet{State: session.Up, Yours: ours})
	k.want("it is Up", session.Up)
	k.pass(time.Minute)
	k.want("it is gone", session.Down)
	if n := len(k.pass(time.Minute)); n != 0 {
		t.Errorf("%d packets after it is gone: a passive side waits", n)
	}
}

func TestAnAdministrativeEnd(t *testing.T) {
	k := begin(t, config())
	k.up()
	sent := k.step(session.Stop{}).Send
	if k.m.Stopped() {
		t.Fatal("stopped after one packet, which may be lost")
	}
	sent = append(sent, k.pass(100*ms)...)
	if len(sent) != 3 || !k.m.Stopped() {
		t.Fatalf("%d packets within 100 ms, stopped: %v; want 3 and stopped", len(sent), k.m.Stopped())
	}
	for _, p := range sent {
		if p.State != session.AdminDown || p.Diagnostic != session.AdministrativelyDown || p.Yours != theirs {
			t.Errorf("sent %+v", p)
		}
	}
	if sent := k.pass(time.Minute); len(sent) != 0 {
		t.Errorf("%d packets after the end", len(sent))
	}
	k.hear(session.Packet{State: session.Down, Yours: ours})
	if k.want("it hears the neighbour", session.AdminDown); k.out.Discard != session.AdministrativeStop {
		t.Errorf("discarded as %q", k.out.Discard)
	}
	k.step(session.Start{})
	k.want("it starts again", session.Down)
	if p := k.last("it starts again"); p.Yours != 0 || p.State != session.Down {
		t.Errorf("sent %+v, want what a new session sends", p)
	}
}

func TestAnEndThatNobodyCouldHear(t *testing.T) {
	k := begin(t, config())
	k.pass(5 * time.Second)
	k.step(session.Stop{})
	if !k.m.Stopped() {
		t.Error("waits for a neighbour that was never heard")
	}
}

func TestTheNeighbourBeginsAnew(t *testing.T) {
	k := begin(t, config())
	k.up()
	k.hear(session.Packet{State: session.Down, Mine: 99, DesiredTx: time.Second})
	if k.want("a packet of its new life", session.Down); k.out.Change.Cause != session.CauseNeighbourDown {
		t.Errorf("change %+v", k.out.Change)
	}
	k.hear(session.Packet{State: session.Down, Mine: 99, DesiredTx: time.Second})
	k.want("another", session.Init)
	if p := k.last("another"); p.Yours != 99 {
		t.Errorf("sent %+v, want the new discriminator", p)
	}
}

func TestAuthenticatedPacketsChangeNothing(t *testing.T) {
	k := begin(t, config())
	k.up()
	before := k.m.View()
	k.hear(session.Packet{State: session.Down, Authenticated: true, Yours: ours})
	if k.out.Discard != session.NotAuthenticated || k.m.View() != before {
		t.Errorf("%q, %+v", k.out.Discard, k.m.View())
	}
}
