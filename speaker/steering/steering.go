// Package steering decides for which ports of Services this node itself sends new connections to
// living endpoints, and how long. kube-proxy sends connections to the endpoints of a dead node
// until the EndpointSlices say that these are not ready, some 40 s after the death. The speakers
// know it within a second. The package is pure: time is an argument. It knows nothing of how the
// kernel is told.
package steering

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/gantry-lb/gantry/internal/view"
	"github.com/gantry-lb/gantry/speaker/intent"
)

const (
	// steeringTimeout bounds the steering around the death of one node. Kubernetes calls a node not
	// ready 40 s after the kubelet fell silent, by default 50 s in newer versions.
	steeringTimeout = 60 * time.Second
	// proxyUpdateDelay is how long the steering outlasts the dead endpoints in the EndpointSlices:
	// kube-proxy has to write its rules, once a second by default, and in a large cluster that
	// takes some seconds.
	proxyUpdateDelay = 5 * time.Second
	// longDeathDelay is how long a node is dead before the UDP flows move that its endpoints
	// answered. A node that only seems dead is usually back by then.
	longDeathDelay = 3 * time.Second
	// maxLivingEndpoints bounds the endpoints that a port is steered to. Each of them is an element
	// of a map in the kernel.
	maxLivingEndpoints = 128
)

// Inputs are what a Outcome is based on.
type Inputs struct {
	Services map[view.ObjectKey]*Service
	// DeadSinceByNode are the dead nodes.
	DeadSinceByNode map[string]time.Time
	// LinkIndexesByAddress are the addresses that this node announces, with the links on which
	// packets for them may arrive.
	LinkIndexesByAddress map[netip.Addr][]int
}

// Service is a Service with its EndpointSlices.
type Service struct {
	// Addresses are the external addresses of the Service.
	Addresses []netip.Addr
	// Traffic is nil if kube-proxy does not serve the Service, or not for the whole cluster.
	Traffic *view.ServiceTraffic
	// HasLocalPolicy is set with the traffic policy Local. Nothing of the Service is steered then.
	HasLocalPolicy bool
	// Slices have their endpoints with addresses.
	Slices []view.EndpointSlice
}

// Outcome is what should be steered.
type Outcome struct {
	Steering intent.Steering
	// NextDueAt is when to decide again though no input changes; zero if never.
	NextDueAt time.Time
	// releasedAtByPort is when the dead endpoints of a port disappeared from the EndpointSlices.
	releasedAtByPort map[intent.ServiceAddressPort]time.Time
}

// Decide returns what should be steered. before is the Outcome before it.
func Decide(in Inputs, before Outcome, now time.Time) Outcome {
	out := Outcome{releasedAtByPort: map[intent.ServiceAddressPort]time.Time{}}
	if len(in.DeadSinceByNode) == 0 {
		return out
	}
	steeredBefore := make(map[intent.ServiceAddressPort]*intent.SteeredPort, len(before.Steering))
	for i := range before.Steering {
		steeredBefore[before.Steering[i].ServiceAddressPort] = &before.Steering[i]
	}
	seen := map[intent.ServiceAddressPort]bool{}
	for _, k := range slices.SortedFunc(maps.Keys(in.Services), view.ObjectKey.Compare) {
		s := in.Services[k]
		if s.Traffic == nil {
			continue
		}
		for _, a := range s.Addresses {
			links := in.LinkIndexesByAddress[a]
			if len(links) == 0 {
				continue
			}
			for i := range s.Traffic.Ports {
				p := newSteeredPort(a, &s.Traffic.Ports[i], s.Traffic, links)
				if p.Protocol == 0 || seen[p.ServiceAddressPort] { // one port is of one Service
					continue
				}
				seen[p.ServiceAddressPort] = true
				e := s.findEndpoints(a, &s.Traffic.Ports[i], in.DeadSinceByNode, now)
				if out.fillInEndpoints(&p, e, steeredBefore[p.ServiceAddressPort], before, now) {
					out.Steering = append(out.Steering, p)
				}
			}
		}
	}
	slices.SortFunc(out.Steering, func(x, y intent.SteeredPort) int { return x.ServiceAddressPort.Compare(y.ServiceAddressPort) })
	return out
}

// newSteeredPort returns a port without its endpoints. Its protocol is 0 if it is not known.
func newSteeredPort(a netip.Addr, port *view.TrafficPort, t *view.ServiceTraffic, links []int) intent.SteeredPort {
	out := intent.SteeredPort{
		ServiceAddressPort: intent.ServiceAddressPort{Address: a, Port: port.Number}, LinkIndexes: links, HasClientAffinity: t.HasClientAffinity,
	}
	switch port.Protocol {
	case "TCP":
		out.Protocol = intent.TCP
	case "UDP":
		out.Protocol = intent.UDP
	case "SCTP":
		out.Protocol = intent.SCTP
	}
	for _, r := range t.SourceRanges { // a family without a range is open, as in kube-proxy
		if r.Addr().Is4() == a.Is4() && !isCovered(r, out.SourceRanges) {
			out.SourceRanges = append(out.SourceRanges, r)
		}
	}
	return out
}

// isCovered reports whether a range is within another one: the kernel refuses ranges that overlap.
// In a sorted list the larger one comes first.
func isCovered(r netip.Prefix, by []netip.Prefix) bool {
	return slices.ContainsFunc(by, func(o netip.Prefix) bool { return o.Bits() <= r.Bits() && o.Contains(r.Addr()) })
}

// endpointsByLife are the endpoints of a port that kube-proxy may choose.
type endpointsByLife struct {
	dead, longDead, living []netip.AddrPort
	lastDeathAt            time.Time
	// nextLongDeathAt is when the next of them is dead for long; zero if all are.
	nextLongDeathAt time.Time
}

// findEndpoints returns the endpoints of a port at an address of its family. kube-proxy chooses the
// ready ones, and without any of them those that terminate and still serve. If all ready ones are
// dead, those that terminate on other nodes are better than none.
func (s *Service) findEndpoints(a netip.Addr, port *view.TrafficPort, deadSince map[string]time.Time, now time.Time) endpointsByLife {
	var ready, terminating endpointsByLife
	for i := range s.Slices {
		slice := s.Slices[i].WithAddresses
		if slice == nil {
			continue
		}
		for _, p := range slice.Ports {
			if p.Name != port.Name || p.Protocol != port.Protocol {
				continue
			}
			for _, e := range slice.Endpoints {
				if e.Address.Is4() != a.Is4() {
					continue
				}
				to := &terminating
				if e.IsReady {
					to = &ready
				}
				to.addEndpoint(netip.AddrPortFrom(e.Address, p.Number), e.Node, deadSince, now)
			}
		}
	}
	out := ready
	if len(ready.dead)+len(ready.living) == 0 {
		out = terminating
	}
	if len(out.living) == 0 {
		out.living = terminating.living
	}
	out.dead, out.longDead, out.living = sortAndCompact(out.dead), sortAndCompact(out.longDead), sampleEndpoints(sortAndCompact(out.living))
	return out
}

func (e *endpointsByLife) addEndpoint(at netip.AddrPort, node string, deadSince map[string]time.Time, now time.Time) {
	since, isDead := deadSince[node]
	if !isDead {
		e.living = append(e.living, at)
		return
	}
	e.dead = append(e.dead, at)
	longDeadAt := since.Add(longDeathDelay)
	switch {
	case !now.Before(longDeadAt):
		e.longDead = append(e.longDead, at)
	case e.nextLongDeathAt.IsZero() || longDeadAt.Before(e.nextLongDeathAt):
		e.nextLongDeathAt = longDeadAt
	}
	if since.After(e.lastDeathAt) {
		e.lastDeathAt = since
	}
}

func sortAndCompact(all []netip.AddrPort) []netip.AddrPort {
	slices.SortFunc(all, netip.AddrPort.Compare)
	return slices.Compact(all)
}

// sampleEndpoints returns at most maxLivingEndpoints of the endpoints, spread over the list.
func sampleEndpoints(all []netip.AddrPort) []netip.AddrPort {
	if len(all) <= maxLivingEndpoints {
		return all
	}
	out := make([]netip.AddrPort, maxLivingEndpoints)
	for i := range out {
		out[i] = all[i*len(all)/maxLivingEndpoints]
	}
	return out
}

// fillInEndpoints completes a port. It reports whether the port should be steered.
func (d *Outcome) fillInEndpoints(p *intent.SteeredPort, e endpointsByLife, steeredBefore *intent.SteeredPort, before Outcome, now time.Time) bool {
	p.LivingEndpoints, p.DeadEndpoints = e.living, e.dead
	if p.Protocol == intent.UDP {
		p.LongDeadEndpoints = e.longDead
	}
	switch {
	case len(e.living) == 0:
		return false
	case len(e.dead) > 0:
		p.Until = e.lastDeathAt.Add(steeringTimeout)
	case steeredBefore == nil || hasCommonEndpoint(steeredBefore.DeadEndpoints, e.living):
		return false // also when the node is back
	default: // the EndpointSlices are right again, and kube-proxy follows
		p.DeadEndpoints, p.LongDeadEndpoints, p.Until = steeredBefore.DeadEndpoints, steeredBefore.LongDeadEndpoints, steeredBefore.Until
		releasedAt, ok := before.releasedAtByPort[p.ServiceAddressPort]
		if !ok {
			releasedAt = now
		}
		if !now.Before(releasedAt.Add(proxyUpdateDelay)) {
			return false
		}
		d.releasedAtByPort[p.ServiceAddressPort] = releasedAt
		d.decideAgainAt(releasedAt.Add(proxyUpdateDelay))
	}
	if !now.Before(p.Until) {
		return false
	}
	d.decideAgainAt(p.Until)
	if p.Protocol == intent.UDP && !e.nextLongDeathAt.IsZero() {
		d.decideAgainAt(e.nextLongDeathAt)
	}
	return true
}

func (d *Outcome) decideAgainAt(t time.Time) {
	if d.NextDueAt.IsZero() || t.Before(d.NextDueAt) {
		d.NextDueAt = t
	}
}

// hasCommonEndpoint reports whether two sorted lists have a common element.
func hasCommonEndpoint(x, y []netip.AddrPort) bool {
	return slices.ContainsFunc(x, func(a netip.AddrPort) bool {
		_, found := slices.BinarySearchFunc(y, a, netip.AddrPort.Compare)
		return found
	})
}

// forgetDeathDelay is how long a dead node that never comes back is remembered. Until then its
// endpoints count as dead also for the steering around another node.
const forgetDeathDelay = 10 * time.Minute

// vanishedMemberTimeout is how long after a member vanished this can begin to count as its death.
const vanishedMemberTimeout = time.Minute

// FollowDeaths returns the dead nodes, after before. silent are the members that are declared dead.
// vanishedAt is when former members vanished without a word: the gossip can remove a dead member
// before its watchers, which have become patient with it, agree that it is dead.
// A dead node stays dead when it is no member any more, until it is one that lives.
func FollowDeaths(
	before map[string]time.Time, members, silent []string, vanishedAt map[string]time.Time, now time.Time,
) map[string]time.Time {
	out := map[string]time.Time{}
	for n, at := range vanishedAt {
		if !slices.Contains(members, n) && now.Sub(at) < vanishedMemberTimeout {
			out[n] = at
		}
	}
	for n, since := range before {
		isGone := !slices.Contains(members, n) && now.Sub(since) < forgetDeathDelay
		if isGone || slices.Contains(silent, n) {
			out[n] = since
		}
	}
	for _, n := range silent {
		if _, known := out[n]; !known {
			out[n] = now
		}
	}
	return out
}

// UnionOfLinks returns the links of two sorted lists, each once.
func UnionOfLinks(x, y []int) []int {
	out := slices.Concat(x, y)
	slices.Sort(out)
	return slices.Compact(out)
}
