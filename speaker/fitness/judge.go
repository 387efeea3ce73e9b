// Package fitness decides whether other nodes should serve addresses rather than this one, and
// keeps what other nodes say of themselves. A node is unfit while its service proxy is silent, or
// while it hears no neighbour on a link. It then takes no address and hands over what another node
// serves. The planner acts on this only while a fit node lives. The package is pure: time is an
// argument.
package fitness

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/speaker/facts"
)

const (
	// DefaultProxySilenceTimeout is how long the service proxy must not have answered. It is longer
	// than a restart of kube-proxy, during which the kernel keeps its rules.
	DefaultProxySilenceTimeout = 30 * time.Second
	// proxyStartTimeout is how long after the boot of the node the service proxy may need for its
	// first answer.
	proxyStartTimeout = 60 * time.Second
	// linkSilenceTimeout is how long no neighbour must have answered on a link after a first round
	// of probes without an answer: two further rounds.
	linkSilenceTimeout = 2 * LinkProbeInterval
	// proxyDoubtfulDelay is how long after its last answer a service proxy is doubtful.
	proxyDoubtfulDelay = 3 * time.Second
	// LinkProbeInterval is the time between two rounds of probes on a link.
	LinkProbeInterval = 10 * time.Second
)

// ServiceProxyOptions configure what a Judge makes of the service proxy.
type ServiceProxyOptions struct {
	// IsHealthCheckUsed is set if the health check of the service proxy counts.
	IsHealthCheckUsed bool
	// ProxySilenceTimeout is how long it must not have answered.
	ProxySilenceTimeout time.Duration
	// NodeBootedAt is when the node booted; zero if that is not known.
	NodeBootedAt time.Time
	// HasAnsweredThisBoot is set if it answered an earlier speaker of this boot.
	HasAnsweredThisBoot bool
}

// Judge decides whether this node is fit. It belongs to one goroutine.
type Judge struct {
	serviceProxyOptions ServiceProxyOptions
	// proxySilentSince is when the service proxy first gave no answer; zero if it answered last. A
	// pause of this process therefore does not count as silence.
	proxySilentSince  time.Time
	silentLinkByIndex map[int]*silentLink // silent links
}

// silentLink is what is known of a link whose last round of probes had no answer.
type silentLink struct {
	subnets     []netip.Prefix
	silentSince time.Time // the first round without an answer
}

// NewJudge returns a Judge that knows nothing of this run of the speaker yet.
func NewJudge(o ServiceProxyOptions) *Judge {
	return &Judge{serviceProxyOptions: o, silentLinkByIndex: map[int]*silentLink{}}
}

// RecordProxyAnswer records that the service proxy answered that it works.
func (j *Judge) RecordProxyAnswer() {
	j.serviceProxyOptions.HasAnsweredThisBoot, j.proxySilentSince = true, time.Time{}
}

// RecordProxySilence records that the service proxy gave no such answer.
func (j *Judge) RecordProxySilence(now time.Time) {
	if j.proxySilentSince.IsZero() {
		j.proxySilentSince = now
	}
}

// HasProxyAnswered reports whether the service proxy has answered in this boot of the node.
func (j *Judge) HasProxyAnswered() bool { return j.serviceProxyOptions.HasAnsweredThisBoot }

// RecordLinkAnswer records that a neighbour answered on a link.
func (j *Judge) RecordLinkAnswer(linkIndex int) { delete(j.silentLinkByIndex, linkIndex) }

// RecordUnansweredLinkProbes records that a round of probes on a link had no answer.
func (j *Judge) RecordUnansweredLinkProbes(link facts.Link, now time.Time) {
	l := j.silentLinkByIndex[link.Index]
	if l == nil {
		l = &silentLink{silentSince: now}
		j.silentLinkByIndex[link.Index] = l
	}
	l.subnets = nil
	for _, p := range link.AddressesWithPrefixLength {
		if !p.Addr().IsLinkLocalUnicast() {
			l.subnets = append(l.subnets, p.Masked())
		}
	}
}

// ForgetLinksExcept forgets all links but those with neighbours that can be probed.
func (j *Judge) ForgetLinksExcept(indexes []int) {
	maps.DeleteFunc(j.silentLinkByIndex, func(index int, _ *silentLink) bool { return !slices.Contains(indexes, index) })
}

// JudgeFitness returns the fitness of this node.
func (j *Judge) JudgeFitness(now time.Time) facts.Fitness {
	f := facts.Fitness{NodeFault: string(j.proxyFaultReason(now))}
	// before the service proxy of a node has answered, its silence says nothing
	f.IsDoubtful = j.serviceProxyOptions.IsHealthCheckUsed && j.serviceProxyOptions.HasAnsweredThisBoot && !j.proxySilentSince.IsZero() && now.Sub(j.proxySilentSince) >= proxyDoubtfulDelay
	for _, l := range j.silentLinkByIndex {
		f.IsDoubtful = true
		if now.Sub(l.silentSince) >= linkSilenceTimeout {
			f.SilentSubnets = append(f.SilentSubnets, l.subnets...)
		}
	}
	slices.SortFunc(f.SilentSubnets, netip.Prefix.Compare)
	f.SilentSubnets = slices.Compact(f.SilentSubnets)
	return f
}

// proxyFaultReason returns what the service proxy makes the node unfit for, if anything.
func (j *Judge) proxyFaultReason(now time.Time) names.Reason {
	switch {
	case !j.serviceProxyOptions.IsHealthCheckUsed:
	case !j.serviceProxyOptions.HasAnsweredThisBoot:
		// Not every service proxy has this health check. One that needs longer than the timeout
		// counts as one without it.
		if !j.serviceProxyOptions.NodeBootedAt.IsZero() && now.Sub(j.serviceProxyOptions.NodeBootedAt) < proxyStartTimeout {
			return names.ReasonServiceProxyStarting
		}
	case !j.proxySilentSince.IsZero() && now.Sub(j.proxySilentSince) >= j.serviceProxyOptions.ProxySilenceTimeout:
		return names.ReasonServiceProxySilent
	}
	return ""
}
