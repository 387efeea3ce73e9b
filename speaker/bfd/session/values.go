package session

import "time"

// Input is a fact that a Machine is stepped with: Received, Configure, Start, Stop, EchoReturned or Tick.
type Input interface{ input() }

// Received is a packet that Parse accepted and that belongs to this session.
type Received struct{ Packet Packet }

// Configure changes the session while it goes on; a session that is Up stays Up.
type Configure struct{ Config Config }

// Stop ends the session administratively; the neighbour is told.
type Stop struct{}

// Start begins it again.
type Start struct{}

// EchoReturned says that an echo packet came back.
type EchoReturned struct{}

// Tick is the passing of time.
type Tick struct{}

func (Received) input()     {}
func (Configure) input()    {}
func (Stop) input()         {}
func (Start) input()        {}
func (EchoReturned) input() {}
func (Tick) input()         {}

// Output is what follows from a step.
type Output struct {
	// Send are packets to send, in order.
	Send []Packet
	// Echo asks for one echo packet.
	Echo bool
	// Change is the change of state, nil if there was none.
	Change *Change
	// Discard says why the packet was not taken.
	Discard Discard
}

// Cause says what made a session change its state.
type Cause uint8

// The causes.
const (
	CauseNeighbour          Cause = iota // the neighbour goes the way to Up with us
	CauseDetectionExpired                // nothing was heard for the Detection Time
	CauseEchoFailed                      // no echo packet returned any more
	CauseNeighbourDown                   // the neighbour says that the path failed, or began anew
	CauseNeighbourAdminDown              // the neighbour ended the session on purpose
	CauseStopped                         // we did
	CauseStarted                         // we began it again
)

// String says the cause in words.
func (c Cause) String() string {
	return [...]string{
		"the neighbour answers", "no packet within the detection time", "echo packets no longer return", "the neighbour signalled down",
		"the neighbour was shut down by its administrator", "stopped here", "started here",
	}[c%7]
}

// Change is a change of state.
type Change struct {
	From, To State
	Cause    Cause
	// Remote is the diagnostic of the neighbour's last packet.
	Remote Diagnostic
}

// View is a Machine as a person sees it.
type View struct {
	State, RemoteState           State
	Diagnostic, RemoteDiagnostic Diagnostic
	// Since is when the session entered its State.
	Since time.Time
	// Local and Remote are the discriminators; Remote is 0 while the neighbour is not heard.
	Local, Remote uint32
	// Transmit is the interval at which we send, before jitter; Detection how long we wait for a packet, 0 while none
	// was heard.
	Transmit, Detection time.Duration
	// Polling says that a Poll Sequence is under way.
	Polling bool
	// EchoLost says that echo packets are sent and none ever returned; EchoRefused that the neighbour takes none.
	EchoLost, EchoRefused bool
}

// View returns what there is to see.
func (m *Machine) View() View {
	v := View{
		State: m.state, RemoteState: m.remote.state, Diagnostic: m.diagnostic, RemoteDiagnostic: m.remote.diagnostic,
		Since: m.since, Local: m.local, Remote: m.remote.discriminator,
		Transmit: m.pace(), Polling: m.poll.active, EchoLost: m.echo.lost(),
		EchoRefused: m.config.Echo > 0 && m.state == Up && m.remote.echoRx == 0,
	}
	if !m.heard.IsZero() {
		v.Detection = m.detection()
	}
	return v
}
