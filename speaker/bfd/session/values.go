package session

import "time"

// Input is a fact that a Machine is stepped with: Received, Configure, Start, Stop, EchoReturned or Tick.
type Input interface{ isInput() }

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

func (Received) isInput()     {}
func (Configure) isInput()    {}
func (Stop) isInput()         {}
func (Start) isInput()        {}
func (EchoReturned) isInput() {}
func (Tick) isInput()         {}

// Output is what follows from a step.
type Output struct {
	// Packets are packets to send, in order.
	Packets []Packet
	// SendEcho asks for one echo packet.
	SendEcho bool
	// Change is the change of state, nil if there was none.
	Change *Change
	// Discard says why the packet was not taken.
	Discard DiscardReason
}

// Cause says what made a session change its state.
type Cause uint8

// The causes.
const (
	CauseNeighbourAnswers   Cause = iota // the neighbour goes the way to Up with us
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
	// RemoteDiagnostic is the diagnostic of the neighbour's last packet.
	RemoteDiagnostic Diagnostic
}

// View is a Machine as a person sees it.
type View struct {
	State, RemoteState           State
	Diagnostic, RemoteDiagnostic Diagnostic
	// Since is when the session entered its State.
	Since time.Time
	// LocalDiscriminator and Remote are the discriminators; Remote is 0 while the neighbour is not heard.
	LocalDiscriminator, RemoteDiscriminator uint32
	// UsedTransmitInterval is the interval at which we send, before jitter; Detection how long we wait for a packet, 0 while none
	// was heard.
	UsedTransmitInterval, DetectionTime time.Duration
	// Polling says that a Poll Sequence is under way.
	Polling bool
	// EchoLost says that echo packets are sent and none ever returned; EchoRefused that the neighbour takes none.
	EchoLost, EchoRefused bool
}

// View returns what there is to see.
func (m *Machine) View() View {
	v := View{
		State: m.state, RemoteState: m.remote.state, Diagnostic: m.diagnostic, RemoteDiagnostic: m.remote.diagnostic,
		Since: m.stateSince, LocalDiscriminator: m.discriminator, RemoteDiscriminator: m.remote.discriminator,
		UsedTransmitInterval: m.transmitInterval(), Polling: m.poll.active, EchoLost: m.echo.isLost(),
		EchoRefused: m.config.EchoInterval > 0 && m.state == Up && m.remote.requiredMinEchoRxInterval == 0,
	}
	if !m.lastHeard.IsZero() {
		v.DetectionTime = m.detectionTime()
	}
	return v
}
