package packetrules

import (
	"errors"
	"fmt"

	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Keys of the expression ct for the address to which the client connected. The library has only the
// older key for both families, whose length the command nft does not know: nft ends with an error
// when it lists such a rule.
const (
	ctKeyTargetIPv4 = 20 // NFT_CT_DST_IP
	ctKeyTargetIPv6 = 22 // NFT_CT_DST_IP6
)

// encodedRule are the expressions of a rule that reads to where a client connected, encoded.
type encodedRule struct {
	chain       string
	expressions []netlink.Attribute
	err         error // the first one
}

func (r *encodedRule) appendExpressions(all ...expr.Any) {
	for _, e := range all {
		b, err := expr.Marshal(unix.NFPROTO_INET, e)
		r.appendEncoded(b, err)
	}
}

func (r *encodedRule) appendEncoded(b []byte, err error) {
	r.err = errors.Join(r.err, err)
	r.expressions = append(r.expressions, netlink.Attribute{Type: netlink.Nested | unix.NFTA_LIST_ELEM, Data: b})
}

// appendOriginalTarget loads the address to which the client connected.
func (r *encodedRule) appendOriginalTarget(f family, register uint32) {
	e := netlink.NewAttributeEncoder()
	e.String(unix.NFTA_EXPR_NAME, "ct")
	e.Nested(unix.NFTA_EXPR_DATA, func(data *netlink.AttributeEncoder) error {
		key := uint32(ctKeyTargetIPv4)
		if f.length == 16 {
			key = ctKeyTargetIPv6
		}
		data.Bytes(unix.NFTA_CT_KEY, encodeBigEndian(key))
		data.Bytes(unix.NFTA_CT_DREG, encodeBigEndian(register))
		data.Uint8(unix.NFTA_CT_DIRECTION, originalDirection)
		return nil
	})
	r.appendEncoded(e.Encode())
}

// appendOriginalPort loads the address, protocol and port to which the client connected.
func (r *encodedRule) appendOriginalPort(f family, register uint32) {
	r.appendOriginalTarget(f, register)
	r.appendExpressions(&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register + f.registers()},
		&expr.Ct{Key: expr.CtKeyPROTODST, Register: register + f.registers() + 1, Direction: originalDirection})
}

// originalDirection is IP_CT_DIR_ORIGINAL: as the client sent the packet.
const originalDirection = 0

func encodeBigEndian(n uint32) []byte {
	return []byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}
}

// newAffinityRule drops the first packet of a connection that kube-proxy sends to a dead endpoint
// because of client affinity, and remembers the client. The kernel has not recorded the connection
// yet, so that the client's next attempt is steered. Connections that would not be steered, as
// those of Pods on this node and over other links, are left alone.
func newAffinityRule(b *tableBuilder, f family) *encodedRule {
	r, n := &encodedRule{chain: forwardChainName}, f.registers()
	r.appendExpressions(matchFamily(f)...)
	r.appendExpressions(&expr.Ct{Key: expr.CtKeySTATE, Register: keyRegister},
		&expr.Bitwise{SourceRegister: keyRegister, DestRegister: keyRegister, Len: 4, Mask: encodeMark(expr.CtStateBitNEW), Xor: encodeMark(0)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: keyRegister, Data: encodeMark(0)},
		&expr.Meta{Key: expr.MetaKeyIIF, Register: keyRegister}, b.lookup(setID{role: announcedLinks}, lookupHits))
	r.appendOriginalTarget(f, keyRegister+1)
	r.appendExpressions(b.lookup(setID{role: elsewhere, family: f}, lookupMisses))
	r.appendOriginalPort(f, keyRegister)
	r.appendExpressions(b.lookup(setID{role: affinePorts, family: f}, lookupHits))
	r.appendExpressions(loadTargetPort(f, keyRegister)...)
	r.appendExpressions(b.lookup(setID{role: deadEndpoints, family: f}, lookupHits), loadSource(f, keyRegister))
	r.appendOriginalPort(f, keyRegister+n)
	r.appendExpressions(&expr.Dynset{SrcRegKey: keyRegister, SetName: setID{role: retryingClients, family: f}.String(), Operation: unix.NFT_DYNSET_OP_UPDATE},
		&expr.Verdict{Kind: expr.VerdictDrop})
	return r
}

// newMasqueradeRule gives steered connections an address of the node, so that the answers come back
// here, and removes the marks. It leaves packets alone on which another program has set the mark.
func newMasqueradeRule(b *tableBuilder, f family) *encodedRule {
	r := &encodedRule{chain: postroutingChainName}
	r.appendExpressions(matchFamily(f)...)
	r.appendExpressions(&expr.Meta{Key: expr.MetaKeyMARK, Register: markRegister},
		&expr.Bitwise{SourceRegister: markRegister, DestRegister: markRegister, Len: 4, Mask: encodeMark(steeredMark), Xor: encodeMark(0)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: markRegister, Data: encodeMark(0)})
	r.appendOriginalPort(f, keyRegister)
	r.appendExpressions(b.lookup(setID{role: steeredPorts, family: f}, lookupHits),
		&expr.Meta{Key: expr.MetaKeyMARK, Register: markRegister},
		&expr.Bitwise{SourceRegister: markRegister, DestRegister: markRegister, Len: 4, Mask: encodeMark(^uint32(steeredMark | proxyMark)), Xor: encodeMark(0)},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: markRegister},
		&expr.Masq{FullyRandom: true})
	return r
}

// toMessage returns the message that appends the rule to its chain.
func (r *encodedRule) toMessage() (netlink.Message, error) {
	list, err := netlink.MarshalAttributes(r.expressions)
	if err = errors.Join(r.err, err); err != nil {
		return netlink.Message{}, err
	}
	attributes, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_RULE_TABLE, Data: []byte(tableName + "\x00")}, {Type: unix.NFTA_RULE_CHAIN, Data: []byte(r.chain + "\x00")},
		{Type: netlink.Nested | unix.NFTA_RULE_EXPRESSIONS, Data: list},
	})
	return netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWRULE, Flags: netlink.Request | netlink.Acknowledge | netlink.Create | netlink.Append},
		Data:   append([]byte{unix.NFPROTO_INET, 0, 0, 0}, attributes...),
	}, err
}

// addEncodedRules adds the rules that read to where a client connected, to a table without them.
func addEncodedRules(b *tableBuilder) error {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return fmt.Errorf("opening a socket for nftables: %w", err)
	}
	defer conn.Close()
	if err := configureSocket(conn); err != nil {
		return fmt.Errorf("preparing a socket for nftables: %w", err)
	}
	mark := func(kind netlink.HeaderType) netlink.Message {
		return netlink.Message{Header: netlink.Header{Type: kind, Flags: netlink.Request}, Data: []byte{0, 0, 0, unix.NFNL_SUBSYS_NFTABLES}}
	}
	batch := []netlink.Message{mark(unix.NFNL_MSG_BATCH_BEGIN)}
	for _, f := range families {
		for _, r := range []*encodedRule{newAffinityRule(b, f), newMasqueradeRule(b, f)} {
			m, err := r.toMessage()
			if err != nil {
				return err
			}
			batch = append(batch, m)
		}
	}
	rules := batch[1:]
	if _, err := conn.SendMessages(append(batch, mark(unix.NFNL_MSG_BATCH_END))); err != nil {
		return fmt.Errorf("sending rules: %w", err)
	}
	for range rules {
		if _, err := conn.Receive(); err != nil {
			return fmt.Errorf("adding rules: %w", err)
		}
	}
	return nil
}
