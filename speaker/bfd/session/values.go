package session

import "time"

// Input is an input of Machine.Step: PacketReceived, ConfigChanged, Start, Stop, EchoReturned or
// Tick.
type Input interface{ isInput() }

// PacketReceived is a packet of this session that Parse accepted.
type PacketReceived struct{ Packet Packet }

// ConfigChanged changes the parameters. A session that is Up stays Up.
type ConfigChanged struct{ Config Config }

// Stop shuts the session down and signals AdminDown to the neighbour.
type Stop struct{}

// Start starts the session again after Stop.
type Start struct{}

// EchoReturned reports that an echo packet returned.
type EchoReturned struct{}

// Tick is the passing of time.
type Tick struct{}

func (PacketReceived) isInput() {}
func (ConfigChanged) isInput()  {}
func (Stop) isInput()           {}
func (Start) isInput()          {}
func (EchoReturned) isInput()   {}
func (Tick) isInput()           {}

// Output is the result of a step.
type Output struct {
	// Packets are to be sent, in order.
	Packets []Packet
	// EchoRequested requests one echo packet.
	EchoRequested bool
	// Change is the change of state; nil if there was none.
	Change *StateChange
	// Discard is why the packet was discarded.
	Discard DiscardReason
}

// Cause is why a session changed its state.
type Cause uint8

// The causes.
const (
	CauseNeighbourAnswers   Cause = iota // the neighbour's packet moves the session towards Up
	CauseDetectionExpired                // no packet within the Detection Time
	CauseEchoFailed                      // no echo packet returned in time
	CauseNeighbourDown                   // the neighbour signalled Down, or restarted
	CauseNeighbourAdminDown              // the neighbour signalled AdminDown
	CauseStopped                         // by Stop
	CauseStarted                         // by Start
)

// String describes the cause in words.
func (c Cause) String() string {
	return [...]string{
		"the neighbour answers", "no packet within the detection time", "echo packets no longer return", "the neighbour signalled down",
		"the neighbour was shut down by its administrator", "stopped here", "started here",
	}[c%7]
}

// StateChange is a change of state.
type StateChange struct {
	From, To State
	Cause    Cause
	// RemoteDiagnostic is the diagnostic of the neighbour's last packet.
	RemoteDiagnostic Diagnostic
}

// View describes the state of a Machine.
type View struct {
	State, RemoteState           State
	Diagnostic, RemoteDiagnostic Diagnostic
	// StateSince is when the session entered its State.
	StateSince time.Time
	// LocalDiscriminator is our discriminator.
	LocalDiscriminator uint32
	// RemoteDiscriminator is the neighbour's, 0 before its first packet.
	RemoteDiscriminator uint32
	// UsedTransmitInterval is the interval at which we send, before jitter.
	UsedTransmitInterval time.Duration
	// DetectionTime is how long we wait for a packet, 0 before
	// the first one (RFC 5880 section 6.8.4).
	DetectionTime time.Duration
	// IsPolling is true during a Poll Sequence.
	IsPolling bool
	// EchoLost is true when echo packets are sent and none has returned.
	EchoLost bool
	// EchoRefused is true when the neighbour accepts no echo packets.
	EchoRefused bool
}

// View returns the state of the Machine.
func (m *Machine) View() View {
	v := View{
		State: m.state, RemoteState: m.remote.state, Diagnostic: m.diagnostic, RemoteDiagnostic: m.remote.diagnostic,
		StateSince: m.stateSince, LocalDiscriminator: m.discriminator, RemoteDiscriminator: m.remote.discriminator,
		UsedTransmitInterval: m.transmitInterval(), IsPolling: m.poll.isActive, EchoLost: m.echo.isLost(),
		EchoRefused: m.config.EchoInterval > 0 && m.state == Up && m.remote.requiredMinEchoRxInterval == 0,
	}
	if !m.lastReceivedAt.IsZero() {
		v.DetectionTime = m.detectionTime()
	}
	return v
}
