package allocate

import (
	"slices"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/internal/view"
)

// PoolExplanation says why one pool can give a Service what it needs, or why not.
type PoolExplanation struct {
	Pool *snapshot.Pool
	// IsCandidate says that the pool is one of those from which the Service gets its addresses: the
	// one that it names, or one that is open to it.
	IsCandidate bool
	// Explanation is why the pool cannot give all addresses. It is zero if it can.
	names.Explanation
}

// ExplainPools says for each pool whether it could give the Service all addresses, as if the
// Service had none and named the pool. The pools come in the order in which they are tried, then
// the others by name. The Ledger says what is free: without it, a pool counts as empty.
func ExplainPools(s *view.Service, l *Ledger, snap *snapshot.Snapshot) []PoolExplanation {
	index := l.indexPoolsOfSnapshot(snap)
	restricted, unrestricted := index.candidatePools.poolsForService(s)
	tried := slices.Concat(restricted, unrestricted)
	if s.RequestedPool != "" {
		tried = nil
		if src := index.poolEntryByName[s.RequestedPool]; src != nil {
			tried = []*poolEntry{src}
		}
	}
	var out []PoolExplanation
	for _, src := range tried {
		out = append(out, PoolExplanation{src.pool, true, explainPool(s, l, src, index)})
	}
	for _, p := range snap.Pools {
		src := index.poolEntryByName[p.Name]
		if src == nil || slices.Contains(tried, src) {
			continue
		}
		out = append(out, PoolExplanation{Pool: p, Explanation: explainPool(s, l, src, index)})
	}
	return out
}

// explainPool says why the pool cannot give the Service all addresses.
func explainPool(s *view.Service, l *Ledger, src *poolEntry, index *poolIndex) names.Explanation {
	alone := *s
	alone.RequestedPool = src.pool.Name
	d := newDecider(&alone, l, index)
	if why := d.decideFromNamedPool(); why.Reason != names.ReasonAssigned && why.Reason != names.ReasonProbing {
		return why.Explanation
	}
	return names.Explanation{}
}
