package agent

import (
	"maps"

	"github.com/gantry-lb/gantry/internal/ipfamily"
	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/layer2"
	"github.com/gantry-lb/gantry/speaker/plan"
)

// portID is a link and a family.
type portID struct {
	linkIndex int
	family    ipfamily.Family
}

// portFaults are the ports that the layer-2 engine could not open.
type portFaults struct {
	denialReasonByPort map[portID]string // why permission is missing
	openErrorByPort    map[portID]string // why the port cannot be opened
}

func (p *portFaults) recordPortFailure(r layer2.PortFailed) {
	id := portID{r.Link.Index, r.Family}
	p.openErrorByPort[id] = r.Err.Error()
	if delete(p.denialReasonByPort, id); r.IsPermissionDenied() {
		p.denialReasonByPort[id] = r.Err.Error()
	}
}

func (p *portFaults) recordPortOpened(r layer2.PortOpened) {
	id := portID{r.Link.Index, r.Family}
	delete(p.openErrorByPort, id)
	delete(p.denialReasonByPort, id)
}

// forgetGoneLinks forgets the faults of links that are gone.
func (p *portFaults) forgetGoneLinks(links facts.LinkSet) {
	isGone := func(id portID, _ string) bool { _, ok := links.FindByIndex(id.linkIndex); return !ok }
	maps.DeleteFunc(p.openErrorByPort, isGone)
	maps.DeleteFunc(p.denialReasonByPort, isGone)
}

// markUnusableFamiliesOfLinks marks each link with the families that cannot be sent on it.
func (p *portFaults) markUnusableFamiliesOfLinks(links facts.LinkSet) facts.LinkSet {
	out := make(facts.LinkSet, 0, len(links))
	for _, l := range links {
		_, l.CannotSendIPv4 = p.openErrorByPort[portID{l.Index, ipfamily.IPv4}]
		_, l.CannotSendIPv6 = p.openErrorByPort[portID{l.Index, ipfamily.IPv6}]
		out = append(out, l)
	}
	return out
}

// faultByLinkIndex returns the faults of links, by their index.
func (p *portFaults) faultByLinkIndex() map[int]string {
	out := map[int]string{}
	for _, f := range []ipfamily.Family{ipfamily.IPv4, ipfamily.IPv6} {
		for id, text := range p.openErrorByPort {
			if id.family != f {
				continue
			}
			if out[id.linkIndex] != "" {
				text = out[id.linkIndex] + "; " + text
			}
			out[id.linkIndex] = text
		}
	}
	return out
}

// toPlannerLinks returns the links on which frames can be sent.
func (p *portFaults) toPlannerLinks(links facts.LinkSet) plannerLinks {
	var out plannerLinks
	for _, l := range p.markUnusableFamiliesOfLinks(links) {
		if !l.CannotSendIPv4 || !l.CannotSendIPv6 {
			out.links = append(out.links, l)
		}
	}
	_, denied := p.findRawSocketDenialOnAllLinks(links)
	out.rawSocketPermission = plan.RawSocketPermission(denied)
	return out
}

// findRawSocketDenialOnAllLinks reports whether raw sockets of one family are denied on all links,
// and why.
func (p *portFaults) findRawSocketDenialOnAllLinks(links facts.LinkSet) (why string, all bool) {
	for _, f := range []ipfamily.Family{ipfamily.IPv4, ipfamily.IPv6} {
		n := 0
		for _, l := range links {
			if text, ok := p.denialReasonByPort[portID{l.Index, f}]; ok {
				n++
				if why == "" || text < why {
					why = text
				}
			}
		}
		all = all || (n > 0 && n == len(links))
	}
	return why, all
}
