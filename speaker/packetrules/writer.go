// Package packetrules writes the packet rules of this node by nftables, into tables of its own. It
// never touches the rules of others. One table exists only while connections are steered around a
// dead node. All that acts in it has a timeout of at most a minute, so that nothing acts any more
// after a crash. Two more forward packets to former holders; what acts in them has a timeout of
// five minutes. The package also deletes entries of connection tracking that point to dead
// endpoints. It decides nothing.
package packetrules

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"

	"github.com/gantry-lb/gantry/speaker/intent"
)

// Writer writes the packet rules of the network namespace in which it is called. It belongs to one
// goroutine.
type Writer struct {
	now func() time.Time
	// written is what the table has, unless elements expired; nil if the table is unknown or not
	// there.
	written tableContent
	// leftoversExpireAt is when what an earlier run left in the table has expired; zero if it has.
	leftoversExpireAt time.Time
	// forwarding is what SetForwarding wrote last, by the index of the family in families.
	forwarding         [len(families)]forwardingContent
	forwardingTimeouts forwardingTimeouts
	// isForwardingRefused is set for the families whose rules CheckKernelForwards found refused.
	isForwardingRefused [len(families)]bool
}

// NewWriter returns a Writer that has written nothing. What an earlier run of the process left acts
// until it expires, or until SetSteering writes the table anew.
func NewWriter(now func() time.Time) *Writer {
	return &Writer{now: now, leftoversExpireAt: now().Add(leftoversTimeout), forwardingTimeouts: usualForwardingTimeouts}
}

// leftoversTimeout is the longest time for which an element stays in the table.
const leftoversTimeout = time.Minute

// sendBufferBytes is enough for a transaction with some hundred thousand elements. The kernel needs
// the whole transaction in one message.
const sendBufferBytes = 64 << 20

// kernelTimeout bounds the wait for the answers to one transaction. A kernel that cannot load
// nf_tables answers once to all its messages, and the library waits for one answer to each.
const kernelTimeout = 5 * time.Second

func openConn() (*nftables.Conn, error) {
	return nftables.New(nftables.WithSockOptions(configureSocket))
}

// configureSocket prepares a socket for one transaction that begins now.
func configureSocket(c *netlink.Conn) error {
	return errors.Join(c.SetWriteBuffer(sendBufferBytes), c.SetReadBuffer(1<<20), c.SetDeadline(time.Now().Add(kernelTimeout)))
}

// flush sends a transaction. It returns the first error: after the deadline there is one for each
// message.
func flush(conn *nftables.Conn) error { return firstError(conn.Flush()) }

// firstError returns the first of the errors that are joined in err, or err if none are.
func firstError(err error) error {
	var joined interface{ Unwrap() []error }
	for errors.As(err, &joined) {
		err = joined.Unwrap()[0]
	}
	return err
}

// SetSteering replaces what is steered, in one transaction if the table is there. After an error
// nothing has changed, or nothing is steered. The next call writes the table anew.
func (w *Writer) SetSteering(s intent.Steering) error {
	if len(s) == 0 {
		return w.removeTable()
	}
	content := newTableContent(s)
	// changes fail if an element expired that was to be deleted, or if somebody edited the table
	if w.written == nil || w.writeChanges(content) != nil {
		if err := w.writeWholeTable(content); err != nil {
			return fmt.Errorf("writing the nftables table %s: %w", tableName, err)
		}
	}
	w.written = content
	return nil
}

// removeTable removes the table. It lets leftovers of an earlier run act until they expire: this
// run may not know of the dead node.
func (w *Writer) removeTable() error {
	if w.written == nil && w.now().Before(w.leftoversExpireAt) {
		return nil
	}
	return w.RemoveTable()
}

// RemoveTable removes the table, and all leftovers of earlier runs.
func (w *Writer) RemoveTable() error {
	if w.written == nil && w.leftoversExpireAt.IsZero() {
		return nil
	}
	w.leftoversExpireAt = time.Time{} // who cannot remove a table has written none
	conn, err := openConn()
	if err == nil {
		newTableBuilder(conn).deleteTable()
		err = flush(conn)
	}
	if err != nil {
		return fmt.Errorf("removing the nftables table %s: %w", tableName, err)
	}
	w.written = nil
	return nil
}

// HasLeftoversToRemove reports whether what an earlier run left has expired and can be removed.
func (w *Writer) HasLeftoversToRemove() bool {
	return w.written == nil && !w.leftoversExpireAt.IsZero() && !w.now().Before(w.leftoversExpireAt)
}

// writeWholeTable replaces the table. All rules are there before the elements, without which none
// acts.
func (w *Writer) writeWholeTable(content tableContent) error {
	w.written, w.leftoversExpireAt = nil, w.now() // an error may leave a table without elements
	conn, err := openConn()
	if err != nil {
		return err
	}
	b := newTableBuilder(conn)
	b.addTable()
	if b.err != nil {
		return b.err
	}
	if err := flush(conn); err != nil {
		return err
	}
	if err := addEncodedRules(b); err != nil {
		return err
	}
	if err := w.writeChanges(content); err != nil {
		return err
	}
	w.leftoversExpireAt = time.Time{}
	return nil
}

// addContent adds what the table does not have yet.
func (w *Writer) addContent(b *tableBuilder, content, known tableContent) {
	now := w.now()
	for id, elements := range content {
		if _, exists := known[id]; !exists && id.isMap() {
			b.addSet(id)
		}
		before, all := known[id], make([]nftables.SetElement, 0, max(len(elements)-len(known[id]), 0))
		for k, e := range elements {
			if old, exists := before[k]; !exists || old != e {
				all = append(all, e.toSetElement(now))
			}
		}
		b.addElements(id, all)
	}
}

// expiryDelay is how close an element is to its end when it cannot be deleted safely: deleting an
// element that has expired fails.
const expiryDelay = time.Second

// errElementsExpire means that the table has to be written anew.
var errElementsExpire = errors.New("elements are about to expire")

// writeChanges writes the difference to what the table has.
func (w *Writer) writeChanges(content tableContent) error {
	conn, err := openConn()
	if err != nil {
		return err
	}
	b, now := newTableBuilder(conn), w.now()
	for id, elements := range w.written {
		var gone []nftables.SetElement
		for k, e := range elements {
			after, still := content[id][k]
			if still && after == e {
				continue
			}
			if !now.Add(expiryDelay).Before(e.until) {
				return errElementsExpire
			}
			gone = append(gone, e.toSetElement(now))
		}
		b.deleteElements(id, gone)
		if content[id] == nil {
			content[id] = map[elementKey]element{} // the set and its rule stay
		}
	}
	w.addContent(b, content, w.written)
	if b.err != nil {
		return b.err
	}
	return flush(conn)
}

// CheckKernel returns why the kernel refuses the rules. It asks with a transaction that adds the
// table and nearly all kinds of rules, and deletes them. It leaves a table alone that is there.
func (w *Writer) CheckKernel() error {
	conn, err := openConn()
	if err != nil {
		return fmt.Errorf("opening a socket for nftables: %w", err)
	}
	b := newTableBuilder(conn)
	b.table.Name += "-check"
	b.addTable()
	for _, f := range families {
		for _, r := range []role{mapForAll, mapForAllowed, mapForRetrying} {
			b.addSet(setID{role: r, family: f, endpointCount: 1})
		}
	}
	b.conn.DelTable(b.table)
	if b.err == nil {
		b.err = flush(conn)
	}
	if b.err != nil {
		return fmt.Errorf("asking the kernel for nftables rules: %w", b.err)
	}
	return nil
}

// proxyTableName is the table of kube-proxy in the mode nftables. proxyChainName is a chain of
// kube-proxy in the modes iptables and ipvs.
const (
	proxyTableName = "kube-proxy"
	proxyChainName = "KUBE-SERVICES"
)

// legacyTablesFile lists the tables of iptables-legacy, whose rules nftables does not show. Only
// kube-proxy, or a program like it, has a table nat there on a node of a cluster.
const legacyTablesFile = "/proc/thread-self/net/ip_tables_names"

// HasServiceProxyRules reports whether kube-proxy has rules on this node.
func (w *Writer) HasServiceProxyRules() (bool, error) {
	conn, err := openConn()
	if err != nil {
		return false, err
	}
	chains, err := conn.ListChains()
	if err != nil {
		return false, fmt.Errorf("listing the nftables chains: %w", err)
	}
	for _, c := range chains {
		if c.Table.Name == proxyTableName || c.Name == proxyChainName {
			return true, nil
		}
	}
	legacy, err := os.ReadFile(legacyTablesFile) // it exists only with iptables-legacy
	return err == nil && slices.Contains(strings.Fields(string(legacy)), "nat"), nil
}
