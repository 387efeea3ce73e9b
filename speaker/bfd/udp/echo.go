package udp

import "github.com/gantry-lb/gantry/speaker/bfd"

type echo struct{}

// SendEcho sends an echo packet.
func (p *port) SendEcho([]byte) error { return bfd.ErrEchoUnsupported }

func (p *port) closeEcho() {}
