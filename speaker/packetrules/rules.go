package packetrules

import (
	"encoding/binary"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The chain forward has the rules for client affinity, and postrouting those that masquerade.
const (
	forwardChainName     = "forward"
	postroutingChainName = "postrouting"
)

// tableName is the name of the table in the family inet.
const tableName = "gantry"

// Packets of steered connections have steeredMark until they leave the node. proxyMark is the mark
// by which kube-proxy, in the mode iptables, accepts a packet that a firewall would not forward.
// Both are removed together.
const (
	steeredMark = 0x1000
	proxyMark   = 0x4000
)

// Registers of 32 bits: those of keys, one for marks, and those for an address to hash. The kernel
// has 16 of them.
const (
	keyRegister  = unix.NFT_REG32_00
	hashRegister = unix.NFT_REG32_10
	markRegister = unix.NFT_REG32_14
)

// maxRetryingClients bounds the clients that the kernel adds by itself. Beyond it kube-proxy sends
// further clients to dead endpoints, as without us.
const maxRetryingClients = 65536

// maxRetryTimeout is how long a client that kube-proxy sent to a dead endpoint is steered at most.
const maxRetryTimeout = 60 * time.Second

// tableBuilder adds parts of the table to a transaction.
type tableBuilder struct {
	conn  *nftables.Conn
	table *nftables.Table
	// steerChains have the rules of the maps, by family.
	steerChains map[family]*nftables.Chain
	sets        map[setID]*nftables.Set
	err         error // the first one
}

// newTableBuilder describes the table. It adds nothing.
func newTableBuilder(conn *nftables.Conn) *tableBuilder {
	b := &tableBuilder{conn: conn, table: &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}, steerChains: map[family]*nftables.Chain{}, sets: map[setID]*nftables.Set{}}
	for _, f := range families {
		b.steerChains[f] = &nftables.Chain{Name: "steer-ipv" + f.String(), Table: b.table}
	}
	return b
}

// addTable replaces the table by one with all chains and the sets that every rule needs, without
// the rules of addEncodedRules.
func (b *tableBuilder) addTable() {
	b.deleteTable()
	b.conn.AddTable(b.table)
	for _, r := range []role{elsewhere, allowedClients, steeredPorts, affinePorts, deadEndpoints, retryingClients} {
		for _, f := range families {
			b.addSet(setID{role: r, family: f})
		}
	}
	b.addSet(setID{role: announcedLinks})
	base := func(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority nftables.ChainPriority) *nftables.Chain {
		return b.conn.AddChain(&nftables.Chain{Name: name, Table: b.table, Type: kind, Hooknum: hook, Priority: &priority})
	}
	// before the chains of kube-proxy, which has the usual priorities
	prerouting := base("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, *nftables.ChainPriorityNATDest-1)
	base(forwardChainName, nftables.ChainTypeFilter, nftables.ChainHookForward, *nftables.ChainPriorityFilter-1)
	base(postroutingChainName, nftables.ChainTypeNAT, nftables.ChainHookPostrouting, *nftables.ChainPriorityNATSource-1)
	b.addRule(prerouting, &expr.Meta{Key: expr.MetaKeyIIF, Register: keyRegister}, b.lookup(setID{role: announcedLinks}, lookupMisses), &expr.Verdict{Kind: expr.VerdictAccept})
	for _, f := range families {
		b.conn.AddChain(b.steerChains[f])
		b.addRule(b.steerChains[f], &expr.Meta{Key: expr.MetaKeyIIF, Register: keyRegister}, loadTarget(f, keyRegister+1),
			b.lookup(setID{role: elsewhere, family: f}, lookupHits), &expr.Verdict{Kind: expr.VerdictReturn})
		b.addRule(prerouting, append(matchFamily(f), &expr.Verdict{Kind: expr.VerdictJump, Chain: b.steerChains[f].Name})...)
	}
}

// deleteTable deletes the table if there is one.
func (b *tableBuilder) deleteTable() {
	b.conn.AddTable(b.table) // deleting what is not there would fail
	b.conn.DelTable(b.table)
}

// setOf returns the set of an ID, as it is in the table.
func (b *tableBuilder) setOf(id setID) *nftables.Set {
	if s := b.sets[id]; s != nil {
		return s
	}
	s := &nftables.Set{Table: b.table, Name: id.String(), HasTimeout: true}
	address, port := nftables.TypeIPAddr, []nftables.SetDatatype{nftables.TypeInetProto, nftables.TypeInetService}
	if id.family.length == 16 {
		address = nftables.TypeIP6Addr
	}
	fields := append([]nftables.SetDatatype{address}, port...)
	switch id.role {
	case announcedLinks:
		fields = []nftables.SetDatatype{nftables.TypeIFIndex}
		s.KeyByteOrder = binaryutil.NativeEndian
	case elsewhere:
		fields = []nftables.SetDatatype{nftables.TypeIFIndex, address}
	case allowedClients:
		fields = append(fields, address)
		s.Interval, s.Concatenation = true, true
	case retryingClients:
		fields = append([]nftables.SetDatatype{address}, fields...)
		s.Dynamic, s.Timeout, s.Size = true, maxRetryTimeout, maxRetryingClients
	case mapForAll, mapForAllowed, mapForRetrying:
		fields = append(fields, nftables.TypeMark)
		s.IsMap, s.DataType = true, nftables.MustConcatSetType(address, nftables.TypeInetService)
	}
	s.KeyType = fields[0]
	if len(fields) > 1 {
		s.KeyType = nftables.MustConcatSetType(fields...)
		s.Concatenation = true
	}
	b.sets[id] = s
	return s
}

// addSet adds an empty set, and for a map the rule that uses it.
func (b *tableBuilder) addSet(id setID) {
	b.recordError(b.conn.AddSet(b.setOf(id), nil))
	if id.isMap() {
		b.addRule(b.steerChains[id.family], b.steerByMap(id)...)
	}
}

func (b *tableBuilder) addRule(c *nftables.Chain, expressions ...expr.Any) {
	b.conn.AddRule(&nftables.Rule{Table: b.table, Chain: c, Exprs: expressions})
}

func (b *tableBuilder) recordError(err error) {
	if b.err == nil {
		b.err = err
	}
}

// elementsPerMessage keeps a list of elements below the 64 KiB of a netlink attribute.
const elementsPerMessage = 400

// addElements adds elements to a set.
func (b *tableBuilder) addElements(id setID, all []nftables.SetElement) {
	for len(all) > 0 {
		n := min(len(all), elementsPerMessage)
		b.recordError(b.conn.SetAddElements(b.setOf(id), all[:n]))
		all = all[n:]
	}
}

// deleteElements deletes elements of a set.
func (b *tableBuilder) deleteElements(id setID, all []nftables.SetElement) {
	for len(all) > 0 {
		n := min(len(all), elementsPerMessage)
		b.recordError(b.conn.SetDeleteElements(b.setOf(id), all[:n]))
		all = all[n:]
	}
}

// lookupResult is the result of a lookup with which a rule goes on.
type lookupResult bool

const (
	lookupHits   lookupResult = false
	lookupMisses lookupResult = true
)

// lookup looks the key up in a set.
func (b *tableBuilder) lookup(id setID, goOn lookupResult) expr.Any {
	s := b.setOf(id)
	return &expr.Lookup{SourceRegister: keyRegister, SetName: s.Name, SetID: s.ID, Invert: bool(goOn)}
}

// steerByMap sends a new connection to an endpoint of the map, if the map has its port.
func (b *tableBuilder) steerByMap(id setID) []expr.Any {
	f := id.family
	afterPort := keyRegister + f.registers() + 2
	var out []expr.Any
	switch id.role {
	case mapForAllowed:
		out = append(loadTargetPort(f, keyRegister), loadSource(f, afterPort), b.lookup(setID{role: allowedClients, family: f}, lookupHits))
	case mapForRetrying:
		out = append([]expr.Any{loadSource(f, keyRegister)}, loadTargetPort(f, keyRegister+f.registers())...)
		out = append(out, b.lookup(setID{role: retryingClients, family: f}, lookupHits))
	}
	out = append(out, loadTargetPort(f, keyRegister)...)
	if id.role == mapForRetrying { // a client stays at its endpoint
		out = append(out, loadSource(f, hashRegister), &expr.Hash{
			SourceRegister: hashRegister, DestRegister: afterPort, Length: f.length, Modulus: uint32(id.endpointCount), Type: expr.HashTypeJenkins, Seed: hashSeed,
		})
	} else {
		out = append(out, &expr.Numgen{Register: afterPort, Modulus: uint32(id.endpointCount), Type: unix.NFT_NG_RANDOM})
	}
	s := b.setOf(id)
	return append(out,
		&expr.Lookup{SourceRegister: keyRegister, DestRegister: keyRegister, IsDestRegSet: true, SetName: s.Name, SetID: s.ID},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: markRegister},
		&expr.Bitwise{SourceRegister: markRegister, DestRegister: markRegister, Len: 4, Mask: encodeMark(^uint32(steeredMark | proxyMark)), Xor: encodeMark(steeredMark | proxyMark)},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: markRegister},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f.nfproto), RegAddrMin: keyRegister, RegProtoMin: keyRegister + f.registers(), Specified: true})
}

// hashSeed is the seed of the hash of client addresses. It is the same on all nodes, so that a
// client keeps its endpoint when the address moves.
const hashSeed = 0x47616e74

func matchFamily(f family) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: keyRegister}, &expr.Cmp{Op: expr.CmpOpEq, Register: keyRegister, Data: []byte{f.nfproto}}}
}

func loadSource(f family, register uint32) expr.Any {
	return &expr.Payload{Base: expr.PayloadBaseNetworkHeader, Offset: f.sourceOffset, Len: f.length, DestRegister: register}
}

func loadTarget(f family, register uint32) expr.Any {
	return &expr.Payload{Base: expr.PayloadBaseNetworkHeader, Offset: f.targetOffset, Len: f.length, DestRegister: register}
}

// loadTargetPort loads the target address, the protocol and the target port. The port has the same
// place in all three protocols.
func loadTargetPort(f family, register uint32) []expr.Any {
	return []expr.Any{
		loadTarget(f, register), &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register + f.registers()},
		&expr.Payload{Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2, DestRegister: register + f.registers() + 1},
	}
}

func encodeMark(m uint32) []byte { return binary.NativeEndian.AppendUint32(nil, m) }
