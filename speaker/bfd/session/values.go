package session

import "time"

// Input is an input of Machine.Step: PacketReceived, ConfigChanged, RestartRequested,
// StopRequested, EchoReturned or TimePassed.
type Input interface{ isInput() }

// PacketReceived is a packet of this session that Parse accepted.
type PacketReceived struct{ Packet Packet }

// ConfigChanged changes the parameters. A session that is Up stays Up.
type ConfigChanged struct{ Config Config }

// StopRequested shuts the session down and signals AdminDown to the neighbour.
type StopRequested struct{}

// RestartRequested starts the session again after Stop.
type RestartRequested struct{}

// EchoReturned reports that an echo packet returned.
type EchoReturned struct{}

// TimePassed is the passing of time.
type TimePassed struct{}

func (PacketReceived) isInput()   {}
func (ConfigChanged) isInput()    {}
func (StopRequested) isInput()    {}
func (RestartRequested) isInput() {}
func (EchoReturned) isInput()     {}
func (TimePassed) isInput()       {}

// Output is the result of a step.
type Output struct {
	// PacketsToSend are to be sent, in order. They are valid until the next step.
	PacketsToSend []Packet
	// MustSendEcho requests one echo packet.
	MustSendEcho bool
	// StateChange is the change of state; nil if there was none.
	StateChange *StateChange
	// DiscardReason is why the packet was discarded.
	DiscardReason DiscardReason
}

// Cause is why a session changed its state.
type Cause uint8

// The causes.
const (
	// the neighbour's packet moves the session towards Up
	CauseHandshakeProgress           Cause = iota
	CauseDetectionExpired                  // no packet within the Detection Time
	CauseEchoFailed                        // no echo packet returned in time
	CauseNeighbourSignalledDown            // the neighbour signalled Down, or restarted
	CauseNeighbourSignalledAdminDown       // the neighbour signalled AdminDown
	CauseStoppedLocally                    // by Stop
	CauseRestartedLocally                  // by Start
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

// MachineStatus describes the state of a Machine.
type MachineStatus struct {
	State, RemoteState           State
	Diagnostic, RemoteDiagnostic Diagnostic
	// StateSince is when the session entered its State.
	StateSince time.Time
	// LocalDiscriminator is our discriminator.
	LocalDiscriminator uint32
	// RemoteDiscriminator is the neighbour's, 0 before its first packet.
	RemoteDiscriminator uint32
	// EffectiveTransmitInterval is the interval at which we send, before jitter.
	EffectiveTransmitInterval time.Duration
	// DetectionTime is how long we wait for a packet, 0 before
	// the first one (RFC 5880 section 6.8.4).
	DetectionTime time.Duration
	// IsPolling is true during a Poll Sequence.
	IsPolling bool
	// NoEchoReturned is true when echo packets are sent and none has returned.
	NoEchoReturned bool
	// NeighbourRefusesEcho is true when the neighbour accepts no echo packets.
	NeighbourRefusesEcho bool
}

// Status returns the state of the Machine.
func (m *Machine) Status() MachineStatus {
	v := MachineStatus{
		State: m.state, RemoteState: m.remote.state, Diagnostic: m.diagnostic, RemoteDiagnostic: m.remote.diagnostic,
		StateSince: m.stateSince, LocalDiscriminator: m.discriminator, RemoteDiscriminator: m.remote.discriminator,
		EffectiveTransmitInterval: m.transmitInterval(), IsPolling: m.poll.isActive, NoEchoReturned: m.echo.hasNoEchoReturned(),
		NeighbourRefusesEcho: m.config.EchoInterval > 0 && m.state == Up && m.remote.requiredMinEchoRxInterval == 0,
	}
	if !m.lastPacketReceivedAt.IsZero() {
		v.DetectionTime = m.detectionTime()
	}
	return v
}
