// Package admission refuses at apply time what the controller would otherwise report in a
// condition. It builds the Snapshot as if the object were admitted, and answers with the new
// Problems in the same words. It admits with a warning what another object may still mend, and what
// is served all the same: references to objects that do not exist yet, entries that overlap those
// of another pool, and addresses that the cluster itself uses. So objects may be applied in any
// order. The webhook is optional: everything works without it.
package admission

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/webhook"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/api/v1beta2"
	"github.com/gantry-lb/gantry/internal/configuration"
	"github.com/gantry-lb/gantry/internal/snapshot"
)

// WebhookPaths are the URL paths of the webhook, one for each kind.
var WebhookPaths = []string{
	"/validate-metallb-io-v1beta1-ipaddresspool", "/validate-metallb-io-v1beta1-l2advertisement", "/validate-metallb-io-v1beta1-bgpadvertisement",
	"/validate-metallb-io-v1beta2-bgppeer", "/validate-metallb-io-v1beta1-bfdprofile", "/validate-metallb-io-v1beta1-community",
}

// ConfigurationValidator answers admission requests about configuration objects.
type ConfigurationValidator struct {
	// Reader reads the existing objects.
	Reader client.Reader
	// ConfigurationScope is the part of the configuration that is read.
	ConfigurationScope configuration.ConfigurationScope
	// LatestSnapshot returns the Snapshot that the controller has published, nil before the first.
	// An object that an edit broke keeps its state there, as it does in the controller.
	LatestSnapshot func() *snapshot.Snapshot
	// LatestClusterAddresses returns the addresses that the cluster itself uses.
	LatestClusterAddresses func() []snapshot.ClusterAddressRange
	// ReadSecretsOfPeers returns the Secrets that BGPPeers name.
	ReadSecretsOfPeers func(context.Context, []v1beta2.BGPPeer) []snapshot.BasicAuthSecret
	// CreationTimeOfNewObject returns the creation time for a new object.
	CreationTimeOfNewObject func() time.Time
}

// RegisterWebhookHandlers makes v the handler of all paths.
func RegisterWebhookHandlers(s webhook.Server, v *ConfigurationValidator) {
	for _, path := range WebhookPaths {
		s.Register(path, &webhook.Admission{Handler: v})
	}
}

// Handle implements admission.Handler.
func (v *ConfigurationValidator) Handle(ctx context.Context, req admission.Request) admission.Response {
	// Gantry does not read the object. The policy in config/policy rejects it, unless another
	// installation reads it.
	if req.Namespace != v.ConfigurationScope.Namespace {
		return admission.Allowed("")
	}
	objects, err := v.readConfigurationObjects(ctx)
	if err != nil {
		return admission.Errored(500, err)
	}
	var before []snapshot.Problem
	objects.PreviousSnapshot, before = snapshot.BuildSnapshot(objects)
	if req.Operation == admissionv1.Delete {
		return reviewDeletion(req.Kind.Kind, req.Name, &objects)
	}
	if err := v.addObjectUnderAdmission(req, &objects); err != nil {
		return admission.Errored(400, err)
	}
	objects.Secrets = v.ReadSecretsOfPeers(ctx, objects.BGPPeers)
	_, after := snapshot.BuildSnapshot(objects)
	return reviewCreateOrUpdate(snapshot.ObjectReference{Kind: req.Kind.Kind, Namespace: req.Namespace, Name: req.Name}, before, after)
}

// readConfigurationObjects reads what the controller reads, as far as it can cause a Problem of an
// object that the webhook is asked about.
func (v *ConfigurationValidator) readConfigurationObjects(ctx context.Context) (snapshot.ConfigurationObjects, error) {
	// The order matters: the objects are not older than the Snapshot.
	previous := v.LatestSnapshot()
	o, err := v.ConfigurationScope.ReadObjects(ctx, v.Reader)
	if err != nil {
		return o, err
	}
	o.PreviousSnapshot, o.ClusterAddresses = previous, v.LatestClusterAddresses()
	o.Secrets = v.ReadSecretsOfPeers(ctx, o.BGPPeers)
	o.Nodes, err = configuration.ReadNodes(ctx, v.Reader)
	return o, err
}

// reviewCreateOrUpdate refuses an object that causes new Problems, its own or another object's. It
// only warns of what another object may still mend, and of what is served all the same.
func reviewCreateOrUpdate(self snapshot.ObjectReference, before, after []snapshot.Problem) admission.Response {
	var refused, warnings []string
	old := map[snapshot.ProblemIdentity]int{}
	for _, p := range before {
		old[p.Identity()]++
	}
	for _, p := range after {
		old[p.Identity()]--
		switch {
		case old[p.Identity()] >= 0:
		case p.IsDanglingReference() || p.IsOnlyAdvice():
			if p.Object == self {
				warnings = append(warnings, p.Text)
			}
		case p.IsOverlapWithOtherPool():
			warnings = append(warnings, formatAnswerText(self, p))
		default:
			refused = append(refused, formatAnswerText(self, p))
		}
	}
	response := admission.Allowed("")
	if len(refused) > 0 {
		response = admission.Denied(strings.Join(refused, "; "))
	}
	return response.WithWarnings(warnings...)
}

// formatAnswerText says what is wrong, and of which object if it is not the object of the request.
func formatAnswerText(self snapshot.ObjectReference, p snapshot.Problem) string {
	if p.Object == self {
		return p.Text
	}
	return fmt.Sprintf("it would make %s %q invalid: %s", p.Object.Kind, p.Object.Name, p.Text)
}

// reviewDeletion refuses to delete a BFDProfile that a BGPPeer uses. Everything else may be
// deleted; conditions report what is missing then.
func reviewDeletion(kind, name string, o *snapshot.ConfigurationObjects) admission.Response {
	if kind != "BFDProfile" {
		return admission.Allowed("")
	}
	for i := range o.BGPPeers {
		if o.BGPPeers[i].Spec.BFDProfile == name {
			return admission.Denied(fmt.Sprintf("failed to delete BFDProfile %q: BGPPeer %q uses it; remove spec.bfdProfile there first", name, o.BGPPeers[i].Name))
		}
	}
	return admission.Allowed("")
}

// addObjectUnderAdmission adds the object of the request to the others, as if it were admitted.
func (v *ConfigurationValidator) addObjectUnderAdmission(req admission.Request, o *snapshot.ConfigurationObjects) error {
	now := metav1.NewTime(v.CreationTimeOfNewObject())
	switch req.Kind.Kind {
	case "IPAddressPool":
		return decodeAndReplaceOrAppendByName(req, &o.Pools, now, func(p *v1beta1.IPAddressPool) *metav1.ObjectMeta { return &p.ObjectMeta })
	case "L2Advertisement":
		return decodeAndReplaceOrAppendByName(req, &o.L2Advertisements, now, func(p *v1beta1.L2Advertisement) *metav1.ObjectMeta { return &p.ObjectMeta })
	case "BGPAdvertisement":
		return decodeAndReplaceOrAppendByName(req, &o.BGPAdvertisements, now, func(p *v1beta1.BGPAdvertisement) *metav1.ObjectMeta { return &p.ObjectMeta })
	case "BGPPeer":
		return decodeAndReplaceOrAppendByName(req, &o.BGPPeers, now, func(p *v1beta2.BGPPeer) *metav1.ObjectMeta { return &p.ObjectMeta })
	case "BFDProfile":
		return decodeAndReplaceOrAppendByName(req, &o.BFDProfiles, now, func(p *v1beta1.BFDProfile) *metav1.ObjectMeta { return &p.ObjectMeta })
	case "Community":
		return decodeAndReplaceOrAppendByName(req, &o.Communities, now, func(p *v1beta1.Community) *metav1.ObjectMeta { return &p.ObjectMeta })
	}
	return fmt.Errorf("the webhook knows no kind %q: correct the ValidatingWebhookConfiguration %q", req.Kind.Kind, names.WebhookConfiguration)
}

// decodeAndReplaceOrAppendByName decodes the object and replaces the one of its name in the list. A
// new object counts as the youngest.
func decodeAndReplaceOrAppendByName[T any](req admission.Request, list *[]T, now metav1.Time, metaOf func(*T) *metav1.ObjectMeta) error {
	var o T
	if err := json.Unmarshal(req.Object.Raw, &o); err != nil {
		return fmt.Errorf("reading the %s: %w", req.Kind.Kind, err)
	}
	m := metaOf(&o)
	m.Name, m.Namespace = req.Name, req.Namespace
	if m.CreationTimestamp.IsZero() {
		m.CreationTimestamp = now
	}
	i := slices.IndexFunc(*list, func(x T) bool { return metaOf(&x).Name == m.Name })
	if i < 0 {
		*list = append(*list, o)
		return nil
	}
	*list = slices.Clone(*list)
	(*list)[i] = o
	return nil
}
