package admission

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/api/v1beta2"
	"github.com/gantry-lb/gantry/internal/configuration"
)

// objectReader is a client.Reader with these objects.
type objectReader struct {
	pools []v1beta1.IPAddressPool
	peers []v1beta2.BGPPeer
}

// Get implements client.Reader.
func (objectReader) Get(context.Context, client.ObjectKey, client.Object, ...client.GetOption) error {
	return errors.New("the webhook reads lists only")
}

// List implements client.Reader.
func (r objectReader) List(_ context.Context, list client.ObjectList, _ ...client.ListOption) error {
	switch l := list.(type) {
	case *v1beta1.IPAddressPoolList:
		l.Items = r.pools
	case *v1beta2.BGPPeerList:
		l.Items = r.peers
	}
	return nil
}

func newPool(name string, entries ...string) v1beta1.IPAddressPool {
	p := v1beta1.IPAddressPool{Spec: v1beta1.IPAddressPoolSpec{Addresses: entries}}
	p.Namespace, p.Name = "metallb-system", name
	p.CreationTimestamp = metav1.NewTime(time.Unix(int64(name[0]), 0))
	return p
}

// sendAdmissionRequest sends a request to the webhook, which sees the objects of the reader.
func sendAdmissionRequest(t *testing.T, r objectReader, op admissionv1.Operation, kind string, o client.Object) admission.Response {
	t.Helper()
	raw, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	v := &ConfigurationValidator{Reader: r, ConfigurationScope: configuration.ConfigurationScope{Namespace: "metallb-system"}, CreationTimeOfNewObject: time.Now}
	return v.Handle(t.Context(), admission.Request{AdmissionRequest: admissionv1.AdmissionRequest{
		Operation: op, Kind: metav1.GroupVersionKind{Kind: kind}, Namespace: o.GetNamespace(), Name: o.GetName(), Object: runtime.RawExtension{Raw: raw},
	}})
}

// An edit that mends a part of a faulty pool is admitted, although the other faults move in the
// list or concern another partner.
func TestEditThatFixesOneOfManyFaultsIsAdmitted(t *testing.T) {
	tests := map[string]struct {
		before []v1beta1.IPAddressPool
		after  v1beta1.IPAddressPool
		refuse string
	}{
		"the first of two faulty entries goes": {
			before: []v1beta1.IPAddressPool{newPool("b", "nonsense", "other", "192.0.2.0/24")}, after: newPool("b", "other", "192.0.2.0/24"),
		},
		"a sound entry before a faulty one goes": {
			before: []v1beta1.IPAddressPool{newPool("b", "192.0.2.0/24", "other")}, after: newPool("b", "other"),
		},
		"the first partner of an overlap goes": {
			before: []v1beta1.IPAddressPool{newPool("a", "10.0.1.0/24", "10.0.2.0/24"), newPool("b", "10.0.0.0/16")}, after: newPool("a", "10.0.2.0/24"),
		},
		"one more fault": {
			before: []v1beta1.IPAddressPool{newPool("b", "other")}, after: newPool("b", "other", "more"), refuse: `"more" is no CIDR`,
		},
		"one fault twice": {
			before: []v1beta1.IPAddressPool{newPool("b", "other")}, after: newPool("b", "other", "other"), refuse: `"other" is no CIDR`,
		},
		"a fault of another pool": {
			before: []v1beta1.IPAddressPool{newPool("b", "10.0.0.0/16")}, after: newPool("a", "10.0.0.0/16"), refuse: "overlaps",
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			r := sendAdmissionRequest(t, objectReader{pools: tc.before}, admissionv1.Update, "IPAddressPool", &tc.after)
			switch {
			case r.Allowed != (tc.refuse == ""):
				t.Errorf("allowed is %v: %v", r.Allowed, r.Result)
			case !r.Allowed && !strings.Contains(r.Result.Message, tc.refuse):
				t.Errorf("it is refused with %q, want %q", r.Result.Message, tc.refuse)
			}
		})
	}
}

// A BFDProfile in another namespace is read by nobody, so that its deletion must not be refused:
// the namespace could not be deleted either.
func TestBFDProfileDeletionInOtherNamespaceIsAdmitted(t *testing.T) {
	peer := v1beta2.BGPPeer{Spec: v1beta2.BGPPeerSpec{BFDProfile: "fast"}}
	peer.Namespace, peer.Name = "metallb-system", "router"
	profile := &v1beta1.BFDProfile{}
	profile.Name = "fast"
	for namespace, want := range map[string]bool{"metallb-system": false, "elsewhere": true} {
		profile.Namespace = namespace
		if r := sendAdmissionRequest(t, objectReader{peers: []v1beta2.BGPPeer{peer}}, admissionv1.Delete, "BFDProfile", profile); r.Allowed != want {
			t.Errorf("in namespace %s: allowed is %v: %v", namespace, r.Allowed, r.Result)
		}
	}
}
