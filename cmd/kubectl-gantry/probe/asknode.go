package probe

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
)

// NodeOutcome is how the question of a node ended: which host answers ARP or NDP there.
type NodeOutcome string

// The outcomes of a node.
const (
	// NodeOutcomeAnswered: hosts answered.
	NodeOutcomeAnswered NodeOutcome = v1alpha1.ProbeOutcomeAnswered
	// NodeOutcomeSilent: no host answered.
	NodeOutcomeSilent NodeOutcome = v1alpha1.ProbeOutcomeSilent
	// NodeOutcomeNotSent: the node has no link on which its speaker can ask.
	NodeOutcomeNotSent NodeOutcome = v1alpha1.ProbeOutcomeNotSent
	// NodeOutcomeNoSpeaker: no speaker took the question.
	NodeOutcomeNoSpeaker NodeOutcome = "NoSpeaker"
	// NodeOutcomeOldSpeaker: a speaker of an older version, which knows no node in the question,
	// answered for another node.
	NodeOutcomeOldSpeaker NodeOutcome = "OldSpeaker"
	// NodeOutcomeNotAsked: the user may not ask.
	NodeOutcomeNotAsked NodeOutcome = "NotAsked"
)

// NodeAnswer is what the speaker of a node says about one address.
type NodeAnswer struct {
	Outcome NodeOutcome
	// MACs are the Ethernet addresses of the hosts that answered.
	MACs []string
	// Detail says why there is no answer.
	Detail string
}

// AskNodeFunc lets the speaker of a node ask for the Ethernet address of an address.
type AskNodeFunc func(ctx context.Context, node string, service client.ObjectKey, address netip.Addr) (NodeAnswer, error)

// NodeAsker asks speakers by AddressProbes, as the controller does before it gives an address.
type NodeAsker struct {
	API             client.Client
	GantryNamespace string
	// AnswerTimeout is how long a speaker may take.
	AnswerTimeout time.Duration
}

const (
	// DefaultNodeAnswerTimeout bounds the answer of a speaker, which asks for 600 ms.
	DefaultNodeAnswerTimeout = 15 * time.Second
	// addressProbeReadInterval is the time between two looks at an AddressProbe.
	addressProbeReadInterval = 200 * time.Millisecond
	// addressProbeDeleteTimeout bounds the removal, also if the user interrupts.
	addressProbeDeleteTimeout = 10 * time.Second
)

// errOldCRDs says that the API server drops the name of the node: then any speaker would answer.
var errOldCRDs = errors.New("the CRD of AddressProbes in the cluster is older than this program, and knows no node: install the CRDs of this version")

// AskNode creates an AddressProbe for the node, waits for its answer, and deletes it.
func (n *NodeAsker) AskNode(ctx context.Context, node string, service client.ObjectKey, address netip.Addr) (answer NodeAnswer, err error) {
	o := &v1alpha1.AddressProbe{
		ObjectMeta: metav1.ObjectMeta{GenerateName: names.OperatorProbeNamePrefix, Namespace: n.GantryNamespace},
		Spec:       v1alpha1.AddressProbeSpec{Address: address.String(), Node: node, Service: v1alpha1.ServiceReference{Namespace: service.Namespace, Name: service.Name}},
	}
	err = n.API.Create(ctx, o)
	switch {
	case apierrors.IsForbidden(err):
		return NodeAnswer{Outcome: NodeOutcomeNotAsked, Detail: "you have no right to create addressprobes.gantry.dev in namespace " + n.GantryNamespace}, nil
	case err != nil:
		return NodeAnswer{}, fmt.Errorf("creating an AddressProbe: %w", err)
	}
	defer func() { err = errors.Join(err, n.deleteAddressProbe(ctx, o)) }()
	if o.Spec.Node != node {
		return NodeAnswer{}, errOldCRDs
	}
	bounded, cancel := context.WithTimeout(ctx, n.AnswerTimeout)
	defer cancel()
	for {
		current := &v1alpha1.AddressProbe{}
		err := n.API.Get(bounded, client.ObjectKeyFromObject(o), current)
		switch {
		case err == nil && current.Status.Outcome != "" && current.Status.Node != node:
			return NodeAnswer{Outcome: NodeOutcomeOldSpeaker, Detail: fmt.Sprintf("the speaker of %s answered in its place, as one of an older version does", current.Status.Node)}, nil
		case err == nil && current.Status.Outcome != "":
			return newNodeAnswer(&current.Status), nil
		case ctx.Err() != nil:
			return NodeAnswer{}, ctx.Err()
		case bounded.Err() != nil:
			return NodeAnswer{Outcome: NodeOutcomeNoSpeaker, Detail: fmt.Sprintf("its speaker did not answer within %s", n.AnswerTimeout)}, nil
		case err != nil:
			return NodeAnswer{}, fmt.Errorf("reading AddressProbe %s: %w", o.Name, err)
		}
		select {
		case <-bounded.Done():
		case <-time.After(addressProbeReadInterval):
		}
	}
}

// newNodeAnswer reads the status that a speaker wrote.
func newNodeAnswer(s *v1alpha1.AddressProbeStatus) NodeAnswer {
	out := NodeAnswer{Outcome: NodeOutcome(s.Outcome)}
	for mac := range strings.SplitSeq(s.By, ",") {
		if mac = strings.TrimSpace(mac); mac != "" {
			out.MACs = append(out.MACs, mac)
		}
	}
	return out
}

// deleteAddressProbe deletes what was created, also after the user has interrupted.
func (n *NodeAsker) deleteAddressProbe(ctx context.Context, o *v1alpha1.AddressProbe) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), addressProbeDeleteTimeout)
	defer cancel()
	if err := client.IgnoreNotFound(n.API.Delete(ctx, o)); err != nil {
		return fmt.Errorf("AddressProbe %s is left over: delete it: %w", o.Name, err)
	}
	return nil
}
