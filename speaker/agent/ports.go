package agent

import (
	"maps"

	"github.com/gantry-lb/gantry/speaker/facts"
	"github.com/gantry-lb/gantry/speaker/layer2"
	"github.com/gantry-lb/gantry/speaker/plan"
)

// portID names a link and a family.
type portID struct {
	link   int
	family layer2.Family
}

// ports is what the layer-2 engine said of its ports.
type ports struct {
	denied map[portID]string // why the port is closed for lack of permission
	failed map[portID]string // why the port could not be opened
}

func (p *ports) fail(r layer2.PortFailed) {
	id := portID{r.Link.Index, r.Family}
	p.failed[id] = r.Err.Error()
	if delete(p.denied, id); r.Denied() {
		p.denied[id] = r.Err.Error()
	}
}

func (p *ports) open(r layer2.PortOpened) {
	id := portID{r.Link.Index, r.Family}
	delete(p.failed, id)
	delete(p.denied, id)
}

// prune forgets the faults of links that are gone; one that comes back is tried afresh.
func (p *ports) prune(links facts.LinkSet) {
	maps.DeleteFunc(p.failed, func(id portID, _ string) bool { _, ok := links.ByIndex(id.link); return !ok })
	maps.DeleteFunc(p.denied, func(id portID, _ string) bool { _, ok := links.ByIndex(id.link); return !ok })
}

// mark says of every link what cannot be sent on it.
func (p *ports) mark(links facts.LinkSet) facts.LinkSet {
	out := make(facts.LinkSet, 0, len(links))
	for _, l := range links {
		_, l.Without4 = p.failed[portID{l.Index, layer2.IPv4}]
		_, l.Without6 = p.failed[portID{l.Index, layer2.IPv6}]
		out = append(out, l)
	}
	return out
}

// faults says what is wrong with links, by their index.
func (p *ports) faults() map[int]string {
	out := map[int]string{}
	for _, f := range []layer2.Family{layer2.IPv4, layer2.IPv6} {
		for id, text := range p.failed {
			if id.family != f {
				continue
			}
			if out[id.link] != "" {
				text = out[id.link] + "; " + text
			}
			out[id.link] = text
		}
	}
	return out
}

// usable returns the links on which frames can really be sent.
func (p *ports) usable(links facts.LinkSet) usable {
	var out usable
	for _, l := range p.mark(links) {
		if !l.Without4 || !l.Without6 {
			out.links = append(out.links, l)
		}
	}
	_, denied := p.refused(links)
	out.denied = plan.Denial(denied)
	return out
}

// refused says whether raw sockets are refused for a whole family on every link, and why.
func (p *ports) refused(links facts.LinkSet) (why string, all bool) {
	for _, f := range []layer2.Family{layer2.IPv4, layer2.IPv6} {
		n := 0
		for _, l := range links {
			if text, ok := p.denied[portID{l.Index, f}]; ok {
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
