package packetrules

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/gantry-lb/gantry/speaker/intent"
)

// forwardingTableName is the name of the tables that forward packets to former holders, one in the
// family ip and one in ip6: the kernel sends copies of packets only in these families.
const forwardingTableName = "gantry-forward"

// ForwardingRefreshInterval is how often SetForwarding has to be called although nothing changed,
// so that what stands ready does not expire.
const ForwardingRefreshInterval = 2 * time.Minute

// forwardingTimeouts are the timeouts of the elements in a forwarding table.
type forwardingTimeouts struct {
	// activeTimeout is how long an element acts without a packet that uses it, and how long the
	// rules act after the last call of SetForwarding.
	activeTimeout time.Duration
	// refreshInterval is the longest time between two calls of SetForwarding.
	refreshInterval time.Duration
}

// usualForwardingTimeouts are those outside of tests.
var usualForwardingTimeouts = forwardingTimeouts{activeTimeout: 5 * time.Minute, refreshInterval: ForwardingRefreshInterval}

// forwardingRole is what a set of a forwarding table is for. All keys but those of memberMACs are a
// link and an address.
type forwardingRole uint8

const (
	// nextHops and nextHopsOfMembers are maps to the address of a former holder. They act only on
	// what is in the sets activeHops and activeHopsOfMembers, whose elements live on while packets
	// use them. The program nft cannot show a map whose elements a packet renews by a value.
	nextHops forwardingRole = iota
	nextHopsOfMembers
	activeHops
	activeHopsOfMembers
	// forwardedAddresses are all addresses. Nothing acts on an address that is not among them, and
	// no packet renews them: the rules end after the process.
	forwardedAddresses
	// strayAddresses are those for which what other nodes forward in vain is dropped. At the end of
	// the chain kube-proxy gets it.
	strayAddresses
	// memberMACs are the Ethernet addresses of the other nodes.
	memberMACs
	forwardingRoleCount
)

var forwardingSetNames = [forwardingRoleCount]string{"next-hops", "next-hops-of-nodes", "active", "active-of-nodes", "addresses", "strays", "nodes"}

// ofRole is how long an element of a set stays; zero for as long as the table. The other nodes are
// known longer than anything is forwarded, so that no packet goes round in circles at the end.
func (t forwardingTimeouts) ofRole(r forwardingRole) time.Duration {
	switch r {
	case nextHops, nextHopsOfMembers:
		return 0
	case memberMACs:
		return t.activeTimeout + t.refreshInterval
	}
	return t.activeTimeout
}

// forwardingTable is the table of one family.
type forwardingTable struct {
	family   family
	timeouts forwardingTimeouts
	table    *nftables.Table
	sets     [forwardingRoleCount]*nftables.Set
}

func newForwardingTable(f family, timeouts forwardingTimeouts) *forwardingTable {
	t := &forwardingTable{family: f, timeouts: timeouts, table: &nftables.Table{Name: forwardingTableName, Family: nftables.TableFamily(f.nfproto)}}
	address := nftables.TypeIPAddr
	if f.length == 16 {
		address = nftables.TypeIP6Addr
	}
	for r := range t.sets {
		s := &nftables.Set{Table: t.table, Name: forwardingSetNames[r], KeyType: nftables.TypeEtherAddr, KeyByteOrder: binaryutil.BigEndian}
		s.Timeout = timeouts.ofRole(forwardingRole(r))
		s.HasTimeout = s.Timeout > 0
		if forwardingRole(r) != memberMACs {
			s.KeyType, s.Concatenation = nftables.MustConcatSetType(nftables.TypeIFIndex, address), true
		}
		switch forwardingRole(r) {
		case nextHops, nextHopsOfMembers:
			s.IsMap, s.DataType = true, address
		case activeHops, activeHopsOfMembers:
			s.Dynamic = true
		}
		t.sets[r] = s
	}
	return t
}

// tcpFlagsOffset is the place of the flags in the TCP header (RFC 9293 section 3.1), and synFlag
// the bit of a packet that begins a connection.
const (
	tcpFlagsOffset = 13
	synFlag        = 0x02
)

// addTable adds the table with its sets and rules to a transaction.
func (t *forwardingTable) addTable(conn *nftables.Conn) error {
	conn.AddTable(t.table)
	for _, s := range t.sets {
		if err := conn.AddSet(s, nil); err != nil {
			return err
		}
	}
	// after connection tracking, before all that translates addresses
	priority := *nftables.ChainPriorityMangle
	entry := conn.AddChain(&nftables.Chain{Name: "prerouting", Table: t.table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPrerouting, Priority: &priority})
	unknown := conn.AddChain(&nftables.Chain{Name: "unknown", Table: t.table})
	fromNodes := conn.AddChain(&nftables.Chain{Name: "from-nodes", Table: t.table})
	add := func(c *nftables.Chain, expressions ...expr.Any) {
		conn.AddRule(&nftables.Rule{Table: t.table, Chain: c, Exprs: expressions})
	}
	add(entry,
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: keyRegister}, &expr.Cmp{Op: expr.CmpOpEq, Register: keyRegister, Data: []byte{byte(intent.TCP)}},
		&expr.Ct{Key: expr.CtKeySTATE, Register: keyRegister},
		&expr.Bitwise{SourceRegister: keyRegister, DestRegister: keyRegister, Len: 4, Mask: encodeMark(expr.CtStateBitNEW | expr.CtStateBitINVALID), Xor: encodeMark(0)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: keyRegister, Data: encodeMark(0)},
		&expr.Payload{Base: expr.PayloadBaseTransportHeader, Offset: tcpFlagsOffset, Len: 1, DestRegister: keyRegister},
		&expr.Bitwise{SourceRegister: keyRegister, DestRegister: keyRegister, Len: 1, Mask: []byte{synFlag}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: keyRegister, Data: []byte{0}},
		&expr.Verdict{Kind: expr.VerdictJump, Chain: unknown.Name})
	add(unknown, &expr.Payload{Base: expr.PayloadBaseLLHeader, Offset: 6, Len: 6, DestRegister: keyRegister}, t.lookup(memberMACs, false),
		&expr.Verdict{Kind: expr.VerdictGoto, Chain: fromNodes.Name})
	add(unknown, t.forward(nextHops, activeHops)...)
	add(fromNodes, t.forward(nextHopsOfMembers, activeHopsOfMembers)...)
	add(fromNodes, append(t.loadKey(), t.lookup(strayAddresses, false), &expr.Verdict{Kind: expr.VerdictDrop})...)
	return nil
}

// loadKey loads the link and the address to which a packet was sent.
func (t *forwardingTable) loadKey() []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyIIF, Register: keyRegister}, loadTarget(t.family, keyRegister+1)}
}

func (t *forwardingTable) lookup(r forwardingRole, loadsValue bool) expr.Any {
	s := t.sets[r]
	out := &expr.Lookup{SourceRegister: keyRegister, SetName: s.Name, SetID: s.ID}
	if loadsValue {
		out.DestRegister, out.IsDestRegSet = nextHopRegister, true
	}
	return out
}

// nextHopRegister is the first register of the address of a former holder.
const nextHopRegister = unix.NFT_REG32_08

// forward sends a packet out of the link on which it came, to the next hop in a map, and lets the
// element of the set with active hops live on.
func (t *forwardingTable) forward(r, active forwardingRole) []expr.Any {
	s := t.sets[active]
	return append(t.loadKey(), t.lookup(forwardedAddresses, false), t.lookup(active, false), t.lookup(r, true),
		&expr.Dynset{SrcRegKey: keyRegister, SetName: s.Name, SetID: s.ID, Operation: unix.NFT_DYNSET_OP_UPDATE, Timeout: t.timeouts.activeTimeout},
		&expr.Dup{RegAddr: nextHopRegister, RegDev: keyRegister, IsRegDevSet: true},
		&expr.Verdict{Kind: expr.VerdictDrop})
}

// forwardingElement is what an element of a set should be.
type forwardingElement struct {
	value string // empty in a set
	// hop is for which next hop an element is active.
	hop string
	// isAbsent is set for a key that must not be in the map.
	isAbsent bool
	// isKept is set for an element that must not expire.
	isKept bool
}

// forwardingContent are the elements of the sets of one table, by key.
type forwardingContent [forwardingRoleCount]map[string]forwardingElement

func newForwardingContent(f intent.Forwarding, of family) forwardingContent {
	var c forwardingContent
	for r := range c {
		c[r] = map[string]forwardingElement{}
	}
	for _, a := range f.Addresses {
		if headerFamily(a.Address) != of {
			continue
		}
		key := encodeNumber(a.LinkIndex) + string(a.Address.AsSlice())
		hop, ofMembers := string(a.NextHop.AsSlice()), string(a.NextHopOfMembers.AsSlice())
		c[nextHops][key] = forwardingElement{value: hop, isAbsent: hop == "", isKept: true}
		c[activeHops][key] = forwardingElement{hop: hop, isAbsent: hop == "", isKept: a.IsStandby}
		c[nextHopsOfMembers][key] = forwardingElement{value: ofMembers, isAbsent: ofMembers == "", isKept: true}
		c[activeHopsOfMembers][key] = forwardingElement{hop: ofMembers, isAbsent: ofMembers == ""}
		c[forwardedAddresses][key] = forwardingElement{isKept: true}
		c[strayAddresses][key] = forwardingElement{isAbsent: a.IsEndOfChain, isKept: true}
	}
	for _, m := range f.MemberMACs {
		c[memberMACs][string(m[:])] = forwardingElement{isKept: true}
	}
	return c
}

// hasNextHop reports whether a packet would be forwarded.
func (c *forwardingContent) hasNextHop() bool {
	for _, r := range []forwardingRole{nextHops, nextHopsOfMembers} {
		for _, e := range c[r] {
			if !e.isAbsent {
				return true
			}
		}
	}
	return false
}

// SetForwarding changes what is forwarded, in one transaction for each family. It leaves elements
// alone that the forwarding does not mention, such as those of an earlier run of the process, until
// they expire. After an error, what was forwarded before may go on. An error of one family leaves
// the other alone.
func (w *Writer) SetForwarding(f intent.Forwarding) error {
	var all error
	for i, of := range families {
		if err := w.setForwardingOf(i, newForwardingContent(f, of)); err != nil {
			all = errors.Join(all, fmt.Errorf("writing the nftables table %s for IPv%s: %w", forwardingTableName, of, err))
		}
	}
	return all
}

// setForwardingOf changes what is forwarded in one family. Without a next hop it asks nothing of a
// kernel that refuses the rules: a node without IPv6 has none for the IPv6 addresses of the others.
func (w *Writer) setForwardingOf(i int, content forwardingContent) error {
	t := newForwardingTable(families[i], w.forwardingTimeouts)
	isThere, err := t.exists()
	isNeeded := isThere || content.hasNextHop() || len(content[forwardedAddresses]) > 0 && !w.isForwardingRefused[i]
	if err == nil && isNeeded {
		if err = t.write(content, w.forwarding[i], isThere); err != nil {
			err = t.write(content, w.forwarding[i], isThere) // an element may have just expired
		}
		if err != nil && isThere { // somebody, or another version, has made another table
			err = t.write(content, forwardingContent{}, false)
		}
	}
	if err == nil {
		w.forwarding[i] = content
	}
	return err
}

func (t *forwardingTable) exists() (bool, error) {
	conn, err := openConn()
	if err != nil {
		return false, err
	}
	all, err := conn.ListTablesOfFamily(t.table.Family)
	return slices.ContainsFunc(all, func(o *nftables.Table) bool { return o.Name == forwardingTableName }), err
}

// write writes the difference to what the kernel has, or the whole table if it is not there. before
// is what was written last.
func (t *forwardingTable) write(content, before forwardingContent, isThere bool) error {
	conn, err := openConn()
	if err != nil {
		return err
	}
	if !isThere {
		conn.AddTable(t.table) // deleting what is not there would fail
		conn.DelTable(t.table)
		if err := t.addTable(conn); err != nil {
			return err
		}
	}
	isChanged := !isThere
	var known [forwardingRoleCount]map[string]nftables.SetElement
	for r := range known {
		if isThere {
			if known[r], err = t.list(forwardingRole(r)); err != nil {
				return err
			}
		}
	}
	for r, wanted := range content {
		gone, added := changesOfSet(wanted, before[r], known[r], t.timeouts.ofRole(forwardingRole(r)), t.timeouts.refreshInterval)
		switch forwardingRole(r) {
		case nextHops:
			gone = append(gone, unusedHops(wanted, known[r], known[activeHops])...)
		case nextHopsOfMembers:
			gone = append(gone, unusedHops(wanted, known[r], known[activeHopsOfMembers])...)
		}
		isChanged = isChanged || len(gone)+len(added) > 0
		for some := range slices.Chunk(gone, elementsPerMessage) {
			if err := conn.SetDeleteElements(t.sets[r], some); err != nil {
				return err
			}
		}
		for some := range slices.Chunk(added, elementsPerMessage) {
			if err := conn.SetAddElements(t.sets[r], some); err != nil {
				return err
			}
		}
	}
	if !isChanged {
		return nil
	}
	return flush(conn)
}

// list returns the elements that a set has in the kernel.
func (t *forwardingTable) list(r forwardingRole) (map[string]nftables.SetElement, error) {
	conn, err := openConn()
	if err != nil {
		return nil, err
	}
	all, err := conn.GetSetElements(t.sets[r])
	out := make(map[string]nftables.SetElement, len(all))
	for _, e := range all {
		out[string(e.Key)] = e
	}
	return out, err
}

// changesOfSet returns the elements to delete and to add. An element that is about to expire is not
// deleted, since the deletion of one that has expired fails. An element that expired because no
// packet used it is not added again.
func changesOfSet(wanted, before map[string]forwardingElement, known map[string]nftables.SetElement, timeout, refreshInterval time.Duration) (gone, added []nftables.SetElement) {
	for key, e := range wanted {
		k, isThere := known[key]
		last, isWritten := before[key]
		isSameHop := !isWritten || last.hop == e.hop
		switch {
		case !isThere && (e.isAbsent || !e.isKept && isWritten && isSameHop):
			continue
		case isThere && timeout > 0 && k.Expires < expiryDelay:
			continue
		case isThere && !e.isAbsent && string(k.Val) == e.value && isSameHop && !(e.isKept && timeout > 0 && k.Expires < timeout-refreshInterval/2):
			continue
		}
		if isThere {
			gone = append(gone, nftables.SetElement{Key: k.Key, Val: k.Val})
		}
		if !e.isAbsent {
			added = append(added, nftables.SetElement{Key: []byte(key), Val: []byte(e.value), Timeout: timeout})
		}
	}
	return gone, added
}

// unusedHops returns the elements of a map that nobody wants and that no packet can use any more.
// An earlier run of the process may have left them.
func unusedHops(wanted map[string]forwardingElement, known, active map[string]nftables.SetElement) (unused []nftables.SetElement) {
	for key, k := range known {
		_, isWanted := wanted[key]
		if _, isActive := active[key]; !isWanted && !isActive {
			unused = append(unused, nftables.SetElement{Key: k.Key, Val: k.Val})
		}
	}
	return unused
}

// CheckKernelForwards returns why the kernel refuses the rules that forward, if it refuses those of
// all families: many nodes have only IPv4. It asks as CheckKernel.
func (w *Writer) CheckKernelForwards() error {
	var all error
	for i, f := range families {
		err := checkForwardingRules(f)
		w.isForwardingRefused[i] = err != nil
		all = errors.Join(all, err)
	}
	if slices.Contains(w.isForwardingRefused[:], false) {
		return nil
	}
	return firstError(all)
}

// checkForwardingRules returns why the kernel refuses the rules that forward packets of a family.
func checkForwardingRules(f family) error {
	conn, err := openConn()
	if err != nil {
		return err
	}
	t := newForwardingTable(f, usualForwardingTimeouts)
	t.table.Name += "-check"
	if err := t.addTable(conn); err != nil {
		return err
	}
	conn.DelTable(t.table)
	if err := flush(conn); err != nil {
		return fmt.Errorf("asking the kernel for nftables rules that forward IPv%s: %w", f, err)
	}
	return nil
}
