// Package gobgp is the speaker's side towards GoBGP, and its only importer. A Speaker is one BgpServer with one
// neighbour: it holds the routes, makes UPDATEs of them, keeps the session alive and answers route refreshes. The
// neighbour is the relay of package bgp, over a connection of this process with itself that a random TCP MD5 key protects
// from other programs on the node.
package gobgp

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	api "github.com/osrg/gobgp/v3/api"
	"github.com/osrg/gobgp/v3/pkg/server"
	"golang.org/x/sys/unix"

	"github.com/gantry-lb/gantry/speaker/bgp"
	"github.com/gantry-lb/gantry/speaker/bgp/frame"
)

// loopback is where a Speaker and its relay meet.
const loopback = "127.0.0.1"

// libraryHold is the hold time that a Speaker believes in, in seconds: the relay watches the router's silence itself, and
// the library takes a hold time of 0 for a write deadline that has passed. The relay sends the keepalives, too.
const libraryHold = 65535

// Library makes Speakers.
type Library struct {
	log *slog.Logger
	mu  sync.Mutex // guards idle, and serialises the starts: they write variables of the library's package
	// idle are stopped servers: a server's goroutine never ends, so that it is used again.
	idle []*server.BgpServer
}

// New returns a Library that tells what the library says at debug level.
func New(log *slog.Logger) *Library { return &Library{log: log} }

// Speaker is a BgpServer with one neighbour. It is used by one goroutine at a time.
type Speaker struct {
	library *Library
	server  *server.BgpServer
	asn     uint32
	port    int
	// refused are the prefixes that could not be announced: they are not in the server's table.
	refused map[netip.Prefix]bool
	peer    bool // a neighbour is configured
	key     string
}

// NewSpeaker returns a Speaker with an empty table.
func (l *Library) NewSpeaker(asn uint32, routerID netip.Addr) (bgp.Speaker, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var s *server.BgpServer
	if n := len(l.idle); n > 0 {
		s, l.idle = l.idle[n-1], l.idle[:n-1]
	} else {
		s = server.NewBgpServer(server.LoggerOption(logger{l.log}))
		go s.Serve()
	}
	var err error
	for range 5 { // between finding a free port and its use another program may take it
		var port int
		if port, err = freePort(); err != nil {
			break
		}
		err = s.StartBgp(context.TODO(), &api.StartBgpRequest{Global: &api.Global{
			Asn: asn, RouterId: routerID.String(), ListenPort: int32(port), ListenAddresses: []string{loopback},
		}})
		if err == nil {
			return &Speaker{library: l, server: s, asn: asn, port: port, refused: map[netip.Prefix]bool{}}, nil
		}
	}
	l.idle = append(l.idle, s)
	return nil, fmt.Errorf("starting GoBGP for AS %d with router ID %s: %w", asn, routerID, err)
}

func freePort() (int, error) {
	l, err := net.Listen("tcp4", loopback+":0")
	if err != nil {
		return 0, fmt.Errorf("finding a free port on %s: %w", loopback, err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// Close ends the Speaker; its server is kept for the next one.
func (s *Speaker) Close() {
	s.library.mu.Lock()
	defer s.library.mu.Unlock()
	_ = s.server.StopBgp(context.TODO(), &api.StopBgpRequest{})
	s.library.idle = append(s.library.idle, s.server)
}

// Set announces paths, each in the place of the former one for its prefix.
func (s *Speaker) Set(paths []bgp.Path) error {
	var faults []error
	for i := range paths {
		p, err := s.encode(&paths[i])
		if err == nil {
			_, err = s.server.AddPath(context.TODO(), &api.AddPathRequest{Path: p})
		}
		if err != nil {
			faults = append(faults, fmt.Errorf("announcing %s: %w", paths[i].Prefix, err))
			s.refused[paths[i].Prefix] = true
			continue
		}
		delete(s.refused, paths[i].Prefix)
	}
	return errors.Join(faults...)
}

// Withdraw takes prefixes back.
func (s *Speaker) Withdraw(prefixes []netip.Prefix) error {
	var faults []error
	for _, p := range prefixes {
		if s.refused[p] {
			delete(s.refused, p)
			continue
		}
		w, err := withdrawal(p)
		if err == nil {
			err = s.server.DeletePath(context.TODO(), &api.DeletePathRequest{Path: w})
		}
		if err != nil {
			faults = append(faults, fmt.Errorf("withdrawing %s: %w", p, err))
			continue
		}
	}
	return errors.Join(faults...)
}

// dialTime bounds one connection over loopback: longer means that the library's kernel socket ignores what is signed.
const dialTime = time.Second

// openTime bounds how long the library may take to accept a connection.
const openTime = 5 * time.Second

// Open makes the agreed peer the server's neighbour and connects as it.
func (s *Speaker) Open(ctx context.Context, a bgp.Agreed) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, openTime)
	defer cancel()
	if err := s.neighbour(ctx, a); err != nil {
		return nil, err
	}
	buf := make([]byte, frame.MaxLen)
	for {
		c, err := s.dial(ctx)
		if err == nil {
			if d, ok := ctx.Deadline(); ok {
				_ = c.SetDeadline(d)
			}
			// A neighbour that is new starts idle, and closes what comes before it is active.
			if _, err = frame.Read(c, buf); err == nil {
				_, err = c.Write(s.openOf(a).Encode())
			}
			if err == nil {
				return c, c.SetDeadline(time.Time{})
			}
			c.Close()
		}
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() && s.key != "" {
			s.library.log.Warn("connecting to GoBGP without TCP MD5, which this kernel lacks: other programs on this node could disturb the session")
			s.key = ""
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("connecting to GoBGP: %w", errors.Join(ctx.Err(), err))
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// openOf is the OPEN that the library gets: the router's, with what is not agreed left out. It always restarts gracefully,
// since the library ends its first routes with an End-of-RIB only then.
func (s *Speaker) openOf(a bgp.Agreed) *frame.Open {
	o := &frame.Open{
		ASN: a.Peer.ASN, Hold: libraryHold, ID: a.Peer.ID, Families: a.Families, FourOctet: a.Peer.FourOctet, Refresh: true,
		ExtendedNextHop: a.ExtendedNextHop, Graceful: &frame.Graceful{Seconds: 1, Families: map[frame.Family]bool{}},
	}
	for _, f := range a.Families {
		o.Graceful.Families[f] = true
	}
	return o
}

// neighbour replaces the server's neighbour: a new one is active at once, where the former would wait.
func (s *Speaker) neighbour(ctx context.Context, a bgp.Agreed) error {
	if s.peer {
		if err := s.server.DeletePeer(ctx, &api.DeletePeerRequest{Address: loopback}); err != nil {
			return fmt.Errorf("removing GoBGP's neighbour: %w", err)
		}
		s.peer = false
	}
	var random [20]byte
	if _, err := rand.Read(random[:]); err != nil {
		return fmt.Errorf("making a key: %w", err)
	}
	s.key = hex.EncodeToString(random[:])
	p := &api.Peer{
		Conf:            &api.PeerConf{NeighborAddress: loopback, LocalAsn: s.asn, PeerAsn: a.Peer.ASN, AuthPassword: s.key},
		Timers:          &api.Timers{Config: &api.TimersConfig{HoldTime: libraryHold, KeepaliveInterval: libraryHold / 3}},
		Transport:       &api.Transport{PassiveMode: true},
		GracefulRestart: &api.GracefulRestart{Enabled: true, RestartTime: 1},
	}
	for _, f := range a.Families {
		p.AfiSafis = append(p.AfiSafis, &api.AfiSafi{
			Config:            &api.AfiSafiConfig{Family: family(f), Enabled: true},
			MpGracefulRestart: &api.MpGracefulRestart{Config: &api.MpGracefulRestartConfig{Enabled: true}},
		})
	}
	if err := s.server.AddPeer(ctx, &api.AddPeerRequest{Peer: p}); err != nil {
		return fmt.Errorf("adding GoBGP's neighbour: %w", err)
	}
	s.peer = true
	return nil
}

// dial connects to the server, with the key if there is one.
func (s *Speaker) dial(ctx context.Context) (net.Conn, error) {
	d := net.Dialer{Timeout: dialTime, Control: func(_, _ string, c syscall.RawConn) error {
		if s.key == "" {
			return nil
		}
		return c.Control(func(fd uintptr) {
			sig := &unix.TCPMD5Sig{Keylen: uint16(len(s.key))}
			sig.Addr.Family = unix.AF_INET
			copy(sig.Addr.Data[2:], []byte{127, 0, 0, 1})
			copy(sig.Key[:], s.key)
			if err := unix.SetsockoptTCPMD5Sig(int(fd), unix.IPPROTO_TCP, unix.TCP_MD5SIG, sig); err != nil {
				s.library.log.Debug("this kernel does not protect connections by TCP MD5", "error", err)
			}
		})
	}}
	return d.DialContext(ctx, "tcp4", fmt.Sprintf("%s:%d", loopback, s.port))
}
