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

// ProxyOptions configure what a Judge makes of the service proxy.
type ProxyOptions struct {
	// IsWatched is set if the health check of the service proxy counts.
	IsWatched bool
	// SilenceTimeout is how long it must not have answered.
	SilenceTimeout time.Duration
	// BootedAt is when the node booted; zero if that is not known.
	BootedAt time.Time
	// HasAnsweredThisBoot is set if it answered an earlier speaker of this boot.
	HasAnsweredThisBoot bool
}

// Judge decides whether this node is fit. It belongs to one goroutine.
type Judge struct {
	proxy ProxyOptions
	// proxySilentSince is when the service proxy first gave no answer; zero if it answered last. A
	// pause of this process therefore does not count as silence.
	proxySilentSince time.Time
	linkByIndex      map[int]*linkState // silent links
}

// linkState is what is known of a link whose last round of probes had no answer.
type linkState struct {
	prefixes    []netip.Prefix
	silentSince time.Time // the first round without an answer
}

// NewJudge returns a Judge that knows nothing of this run of the speaker yet.
func NewJudge(o ProxyOptions) *Judge { return &Judge{proxy: o, linkByIndex: map[int]*linkState{}} }

// RecordProxyAnswer records that the service proxy answered that it works.
func (j *Judge) RecordProxyAnswer() {
	j.proxy.HasAnsweredThisBoot, j.proxySilentSince = true, time.Time{}
}

// RecordProxySilence records that the service proxy gave no such answer.
func (j *Judge) RecordProxySilence(now time.Time) {
	if j.proxySilentSince.IsZero() {
		j.proxySilentSince = now
	}
}

// HasProxyAnswered reports whether the service proxy has answered in this boot of the node.
func (j *Judge) HasProxyAnswered() bool { return j.proxy.HasAnsweredThisBoot }

// RecordLinkAnswer records that a neighbour answered on a link.
func (j *Judge) RecordLinkAnswer(linkIndex int) { delete(j.linkByIndex, linkIndex) }

// RecordLinkSilence records that a round of probes on a link had no answer.
func (j *Judge) RecordLinkSilence(link facts.Link, now time.Time) {
	l := j.linkByIndex[link.Index]
	if l == nil {
		l = &linkState{silentSince: now}
		j.linkByIndex[link.Index] = l
	}
	l.prefixes = nil
	for _, p := range link.AddressesWithPrefixLength {
		if !p.Addr().IsLinkLocalUnicast() {
			l.prefixes = append(l.prefixes, p.Masked())
		}
	}
}

// ForgetLinksExcept forgets all links but those with neighbours that can be probed.
func (j *Judge) ForgetLinksExcept(indexes []int) {
	maps.DeleteFunc(j.linkByIndex, func(index int, _ *linkState) bool { return !slices.Contains(indexes, index) })
}

// JudgeFitness returns the fitness of this node.
func (j *Judge) JudgeFitness(now time.Time) facts.Fitness {
	f := facts.Fitness{NodeFault: string(j.judgeProxy(now))}
	// before the service proxy of a node has answered, its silence says nothing
	f.IsDoubtful = j.proxy.IsWatched && j.proxy.HasAnsweredThisBoot && !j.proxySilentSince.IsZero() && now.Sub(j.proxySilentSince) >= proxyDoubtfulDelay
	for _, l := range j.linkByIndex {
		f.IsDoubtful = true
		if now.Sub(l.silentSince) >= linkSilenceTimeout {
			f.SilentPrefixes = append(f.SilentPrefixes, l.prefixes...)
		}
	}
	slices.SortFunc(f.SilentPrefixes, netip.Prefix.Compare)
	f.SilentPrefixes = slices.Compact(f.SilentPrefixes)
	return f
}

// judgeProxy returns what the service proxy makes the node unfit for, if anything.
func (j *Judge) judgeProxy(now time.Time) names.Reason {
	switch {
	case !j.proxy.IsWatched:
	case !j.proxy.HasAnsweredThisBoot:
		// Not every service proxy has this health check. One that needs longer than the timeout
		// counts as one without it.
		if !j.proxy.BootedAt.IsZero() && now.Sub(j.proxy.BootedAt) < proxyStartTimeout {
			return names.ReasonServiceProxyStarting
		}
	case !j.proxySilentSince.IsZero() && now.Sub(j.proxySilentSince) >= j.proxy.SilenceTimeout:
		return names.ReasonServiceProxySilent
	}
	return ""
}
