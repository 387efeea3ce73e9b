package packetrules

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"net"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/speaker/intent"
	"github.com/gantry-lb/gantry/speaker/links/netnstest"
)

// The chunks with which an SCTP association begins (RFC 9260 sections 3.3.2 and 3.3.3).
const (
	sctpInit    = 1
	sctpInitAck = 2
)

// sctpHandshakeBytes is the length of a packet with one of these chunks: the common header, and the
// chunk without parameters.
const sctpHandshakeBytes = 12 + 20

// encodeSCTPHandshake returns a packet that begins an association, or answers one. The tests do not
// need SCTP in the kernel.
func encodeSCTPHandshake(chunk byte, sourcePort, targetPort uint16, verificationTag, initiateTag uint32) []byte {
	p := binary.BigEndian.AppendUint16(make([]byte, 0, sctpHandshakeBytes), sourcePort)
	p = binary.BigEndian.AppendUint16(p, targetPort)
	p = binary.BigEndian.AppendUint32(p, verificationTag)
	p = append(p, 0, 0, 0, 0, chunk, 0, 0, 20)
	p = binary.BigEndian.AppendUint32(p, initiateTag)
	p = binary.BigEndian.AppendUint32(p, 1<<16)                 // window
	p = append(p, 0, 1, 0, 1)                                   // streams
	p = binary.BigEndian.AppendUint32(p, 1)                     // first number
	sum := crc32.Checksum(p, crc32.MakeTable(crc32.Castagnoli)) // with zeroes in its place
	binary.LittleEndian.PutUint32(p[8:], sum)
	return p
}

// sctpNetwork is the name by which package net opens a socket for SCTP packets.
func (f testFamily) sctpNetwork() string {
	if f.nft == "ip" {
		return "ip4:132"
	}
	return "ip6:132"
}

// startSCTPServers answer on the living Pods. The tag of the answer is the number of the Pod.
func (n *testNode) startSCTPServers() {
	for i, pod := range n.pods {
		pod.MustRunInside(func() error {
			c, err := net.ListenPacket(n.family.sctpNetwork(), n.family.pod(i+1, 2))
			if err != nil {
				return err
			}
			n.t.Cleanup(func() { c.Close() })
			go func() {
				b := make([]byte, 1500)
				for {
					length, from, err := c.ReadFrom(b)
					if err != nil {
						return
					}
					if length < sctpHandshakeBytes || b[12] != sctpInit || binary.BigEndian.Uint16(b[2:]) != 8080 {
						continue
					}
					_, _ = c.WriteTo(encodeSCTPHandshake(sctpInitAck, 8080, binary.BigEndian.Uint16(b), binary.BigEndian.Uint32(b[16:]), uint32(i+1)), from)
				}
			}()
			return nil
		})
	}
}

// beginSCTPAssociation begins an association with port 80 of the Service and returns the number of
// the Pod that answers.
func (n *testNode) beginSCTPAssociation(from *netnstest.Namespace, sourcePort uint16) (pod int, err error) {
	from.MustRunInside(func() error {
		c, failed := net.Dial(n.family.sctpNetwork(), n.family.service)
		if failed != nil {
			return failed
		}
		defer c.Close()
		if _, failed := c.Write(encodeSCTPHandshake(sctpInit, sourcePort, 80, 0, 7)); failed != nil {
			return failed
		}
		_ = c.SetDeadline(time.Now().Add(unansweredTimeout))
		b := make([]byte, 1500)
		var length int
		if length, err = c.Read(b); err != nil {
			return nil
		}
		if n.family.nft == "ip" && length > 20 { // the header of IPv4 comes too
			b, length = b[20:], length-20
		}
		if length < sctpHandshakeBytes || b[12] != sctpInitAck || binary.BigEndian.Uint16(b) != 80 || binary.BigEndian.Uint16(b[2:]) != sourcePort {
			return errors.New("the answer is not for this association")
		}
		pod = int(binary.BigEndian.Uint32(b[16:]))
		return nil
	})
	return pod, err
}

func TestSCTPAssociationsGoToLivingEndpoints(t *testing.T) {
	runForEachFamily(t, func(t *testing.T, n *testNode) {
		n.startSCTPServers()
		if pod, err := n.beginSCTPAssociation(n.client, 1000); err == nil {
			t.Fatalf("nothing is steered yet, and Pod %d answers: this test shows nothing", pod)
		}
		p := n.steeredPort(intent.SCTP)
		n.steer(p)
		if pod, err := n.beginSCTPAssociation(n.client, 1000); err == nil {
			t.Errorf("Pod %d answers although the kernel sends the association to the dead one", pod)
		}
		n.namespace.MustRunInside(func() error {
			if deleted, err := n.writer.DeleteConnectionsToDeadEndpoints(intent.Steering{p}); err != nil || deleted != 1 {
				t.Errorf("%d entries were deleted, %v; want 1", deleted, err)
			}
			return nil
		})
		pods := map[int]int{}
		for port := range uint16(20) {
			pod, err := n.beginSCTPAssociation(n.client, 1000+port)
			if err != nil {
				t.Fatalf("beginning an association: %v\n%s", err, n.nft("list ruleset"))
			}
			pods[pod]++
		}
		if len(pods) != 2 || pods[1] == 0 || pods[2] == 0 {
			t.Errorf("20 associations went to the Pods %v, want 1 and 2", pods)
		}
		if _, err := n.beginSCTPAssociation(n.stranger, 2000); err == nil {
			t.Error("the address is not announced on the link of the stranger, and an association from there is steered")
		}
	})
}
