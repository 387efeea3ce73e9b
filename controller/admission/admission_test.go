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
	"github.com/gantry-lb/gantry/internal/snapshot"
)

// objectReader is a client.Reader with these objects. The other fields are what the controller
// knows.
type objectReader struct {
	pools            []v1beta1.IPAddressPool
	peers            []v1beta2.BGPPeer
	published        *snapshot.Snapshot
	clusterAddresses []snapshot.ClusterAddressRange
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
	v := &ConfigurationValidator{
		Reader: r, ConfigurationScope: configuration.ConfigurationScope{Namespace: "metallb-system"}, CreationTimeOfNewObject: time.Now,
		LatestSnapshot:         func() *snapshot.Snapshot { return r.published },
		LatestClusterAddresses: func() []snapshot.ClusterAddressRange { return r.clusterAddresses },
		ReadSecretsOfPeers:     func(context.Context, []v1beta2.BGPPeer) []snapshot.BasicAuthSecret { return nil },
	}
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
		"an overlap in itself": {
			before: []v1beta1.IPAddressPool{newPool("b", "10.0.0.0/16")}, after: newPool("b", "10.0.0.0/16", "10.0.1.0/24"), refuse: `overlaps with already defined CIDR or range "10.0.0.0/16" of pool "b"`,
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

// Whoever splits a pool in one commit may apply the new pool before the old one is smaller, or the
// other way round.
func TestPoolMayBeSplitInAnyOrder(t *testing.T) {
	whole, smaller, split := newPool("whole", "10.0.0.0/24"), newPool("whole", "10.0.0.0/25"), newPool("split", "10.0.0.128/25")
	const warning = "overlaps with already defined CIDR or range"
	for name, tc := range map[string]struct {
		before    []v1beta1.IPAddressPool
		operation admissionv1.Operation
		after     v1beta1.IPAddressPool
		warning   string
	}{
		"the new pool first":          {[]v1beta1.IPAddressPool{whole}, admissionv1.Create, split, warning},
		"then the old one":            {[]v1beta1.IPAddressPool{whole, split}, admissionv1.Update, smaller, ""},
		"the old pool first":          {[]v1beta1.IPAddressPool{whole}, admissionv1.Update, smaller, ""},
		"then the new one":            {[]v1beta1.IPAddressPool{smaller}, admissionv1.Create, split, ""},
		"joined again, grown first":   {[]v1beta1.IPAddressPool{smaller, split}, admissionv1.Update, whole, warning},
		"then the new one is deleted": {[]v1beta1.IPAddressPool{whole, split}, admissionv1.Delete, split, ""},
	} {
		r := sendAdmissionRequest(t, objectReader{pools: tc.before}, tc.operation, "IPAddressPool", &tc.after)
		if said := strings.Join(r.Warnings, "; "); !r.Allowed || !strings.Contains(said, tc.warning) || (said == "") != (tc.warning == "") {
			t.Errorf("%s: allowed is %v (%v) with the warning %q, want %q", name, r.Allowed, r.Result, said, tc.warning)
		}
	}
}

// buildPublishedSnapshot returns the Snapshot that the controller publishes for these pools.
func buildPublishedSnapshot(previous *snapshot.Snapshot, pools ...v1beta1.IPAddressPool) *snapshot.Snapshot {
	s, _ := snapshot.BuildSnapshot(snapshot.ConfigurationObjects{Namespace: "metallb-system", Pools: pools, PreviousSnapshot: previous})
	return s
}

// A pool that an edit broke, while the webhook did not run, keeps its addresses in the controller.
// The webhook knows them, and is in the way of neither its mending nor its deletion.
func TestAddressesOfBrokenPoolAreStillTaken(t *testing.T) {
	sound, broken := newPool("a", "10.0.0.0/24"), newPool("a", "nonsense")
	published := buildPublishedSnapshot(buildPublishedSnapshot(nil, sound), broken)
	overlapping, other, elsewhere := newPool("b", "10.0.0.0/24"), newPool("b", "10.0.1.0/24"), newPool("a", "10.0.2.0/24")
	noLongerBroken := buildPublishedSnapshot(published, elsewhere)
	tests := map[string]struct {
		before    []v1beta1.IPAddressPool
		published *snapshot.Snapshot
		operation admissionv1.Operation
		after     v1beta1.IPAddressPool
		warning   string
	}{
		"a new pool with its addresses":             {[]v1beta1.IPAddressPool{broken}, published, admissionv1.Create, overlapping, `overlaps with already defined CIDR or range "10.0.0.0/24" of pool "a"`},
		"a new pool with other addresses":           {[]v1beta1.IPAddressPool{broken}, published, admissionv1.Create, other, ""},
		"the pool gets its addresses back":          {[]v1beta1.IPAddressPool{broken}, published, admissionv1.Update, sound, ""},
		"the pool gets other addresses":             {[]v1beta1.IPAddressPool{broken}, published, admissionv1.Update, elsewhere, ""},
		"the pool is deleted":                       {[]v1beta1.IPAddressPool{broken}, published, admissionv1.Delete, broken, ""},
		"an overlapping pool exists, and is mended": {[]v1beta1.IPAddressPool{broken, overlapping}, published, admissionv1.Update, other, ""},
		"the pool is mended beside that one":        {[]v1beta1.IPAddressPool{broken, overlapping}, published, admissionv1.Update, sound, ""},
		"the broken pool is gone":                   {nil, published, admissionv1.Create, overlapping, ""},
		"it was given up":                           {[]v1beta1.IPAddressPool{elsewhere}, noLongerBroken, admissionv1.Create, overlapping, ""},
		"it was given up a moment ago":              {[]v1beta1.IPAddressPool{elsewhere}, published, admissionv1.Create, overlapping, ""},
		"nothing is published yet":                  {[]v1beta1.IPAddressPool{broken}, nil, admissionv1.Create, overlapping, ""},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			r := sendAdmissionRequest(t, objectReader{pools: tc.before, published: tc.published}, tc.operation, "IPAddressPool", &tc.after)
			if said := strings.Join(r.Warnings, "; "); !r.Allowed || !strings.Contains(said, tc.warning) || (said == "") != (tc.warning == "") {
				t.Errorf("allowed is %v (%v) with the warning %q, want %q", r.Allowed, r.Result, said, tc.warning)
			}
		})
	}
}

// A pool with an address of the cluster is served all the same. The user who applies it gets a
// warning, and gets it once.
func TestPoolWithAddressOfClusterIsAdmittedWithWarning(t *testing.T) {
	address, err := snapshot.ParseRange("192.0.2.10")
	if err != nil {
		t.Fatal(err)
	}
	r := objectReader{clusterAddresses: []snapshot.ClusterAddressRange{{Range: address, Use: "the address of node a"}}}
	pool := newPool("b", "192.0.2.0/24")
	response := sendAdmissionRequest(t, r, admissionv1.Create, "IPAddressPool", &pool)
	if !response.Allowed || len(response.Warnings) != 1 || !strings.Contains(response.Warnings[0], "192.0.2.10 is the address of node a") {
		t.Errorf("allowed is %v (%v) with the warnings %q, want one about the address of node a", response.Allowed, response.Result, response.Warnings)
	}
	r.pools = []v1beta1.IPAddressPool{pool}
	pool.Spec.AvoidBuggyIPs = true
	if response := sendAdmissionRequest(t, r, admissionv1.Update, "IPAddressPool", &pool); !response.Allowed || len(response.Warnings) > 0 {
		t.Errorf("an edit of something else: allowed is %v (%v) with the warnings %q, want none", response.Allowed, response.Result, response.Warnings)
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
