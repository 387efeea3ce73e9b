// Package explain answers why something works or does not: it puts the objects of the API server
// before the decision code of the controller (packages snapshot, allocate, advertise and
// announcedcondition), and orders what that code says. It has no rule of its own about what Gantry
// does, and it writes nothing.
package explain

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/api/v1beta2"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/objects"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/report"
	"github.com/gantry-lb/gantry/controller/announcedcondition"
	"github.com/gantry-lb/gantry/controller/configurationreader"
	"github.com/gantry-lb/gantry/internal/configuration"
	"github.com/gantry-lb/gantry/internal/snapshot"
)

// Explainer answers questions. Use NewExplainer to create it.
type Explainer struct {
	objectReader *objects.Reader
	// gantryNamespace has the objects of Gantry.
	gantryNamespace string
	now             func() time.Time
	// showProgress is called before a reading that may take long.
	showProgress func(string)
	// fetchSpeakerPage is nil if the speakers are not to be asked.
	fetchSpeakerPage PodPageFetcher
	// fastestAPIAnswerDelay may be nil.
	fastestAPIAnswerDelay func() time.Duration
	installation          *installation // nil before it is read
	rivals                *rivalSearch  // nil before they are looked for
}

// ExplainerOptions are the settings of an Explainer.
type ExplainerOptions struct {
	ObjectReader    *objects.Reader
	GantryNamespace string
	// Now returns the time of the API server: the clock of the user may be wrong.
	Now          func() time.Time
	ShowProgress func(string)
	// FetchSpeakerPage asks a speaker itself; nil if none is to be asked.
	FetchSpeakerPage PodPageFetcher
	// FastestAPIAnswerDelay returns how long the fastest answer of the API server took; it may be
	// nil.
	FastestAPIAnswerDelay func() time.Duration
}

// NewExplainer returns an Explainer.
func NewExplainer(o ExplainerOptions) *Explainer {
	return &Explainer{objectReader: o.ObjectReader, gantryNamespace: o.GantryNamespace, now: o.Now, showProgress: o.ShowProgress, fetchSpeakerPage: o.FetchSpeakerPage, fastestAPIAnswerDelay: o.FastestAPIAnswerDelay}
}

// ReaderAndNamespace returns what the Explainer reads from, and the namespace of Gantry.
func (e *Explainer) ReaderAndNamespace() (*objects.Reader, string) {
	return e.objectReader, e.gantryNamespace
}

// configurationListRequests are the kinds that make up the configuration, without Secrets: few
// users may read those.
func (e *Explainer) configurationListRequests() []objects.ListRequest {
	return []objects.ListRequest{
		{List: &v1beta1.IPAddressPoolList{}, Namespace: e.gantryNamespace},
		{List: &v1beta1.L2AdvertisementList{}, Namespace: e.gantryNamespace},
		{List: &v1beta1.BGPAdvertisementList{}, Namespace: e.gantryNamespace},
		{List: &v1beta2.BGPPeerList{}, Namespace: e.gantryNamespace},
		{List: &v1beta1.BFDProfileList{}, Namespace: e.gantryNamespace},
		{List: &v1beta1.CommunityList{}, Namespace: e.gantryNamespace},
		{List: &v1alpha1.AddressReservationList{}, Namespace: e.gantryNamespace},
		{List: newMetadataList("NodeList")},
		{List: newMetadataList("NamespaceList")},
	}
}

// statusListRequests are the kinds in which controller and speakers report about the whole
// installation.
func (e *Explainer) statusListRequests() []objects.ListRequest {
	return append(e.workloadListRequests(),
		objects.ListRequest{List: &v1alpha1.SpeakerStatusList{}, Namespace: e.gantryNamespace},
		objects.ListRequest{List: &v1alpha1.BGPSessionList{}, Namespace: e.gantryNamespace})
}

func newMetadataList(kind string) *metav1.PartialObjectMetadataList {
	list := &metav1.PartialObjectMetadataList{}
	list.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind(kind))
	return list
}

// essentialResources are those without which the decisions of the controller cannot be repeated.
var essentialResources = []string{
	"ipaddresspools.metallb.io", "l2advertisements.metallb.io", "bgpadvertisements.metallb.io", "bgppeers.metallb.io", "nodes",
	"speakerstatuses.gantry.dev", "servicel2statuses.metallb.io", "bgpsessions.gantry.dev", "servicebgpstatuses.metallb.io", "endpointslices.discovery.k8s.io",
}

// mayListEssentialResources reports whether no essential kind was refused so far.
func (e *Explainer) mayListEssentialResources() bool {
	return !slices.ContainsFunc(essentialResources, e.objectReader.LacksRightToRead)
}

// readConfiguration builds the Snapshot from what was listed.
func (e *Explainer) readConfiguration(ctx context.Context) (*configurationreader.Configuration, error) {
	secrets, err := e.listPasswordSecrets(ctx)
	if err != nil {
		return nil, err
	}
	o, err := configurationreader.ReadAllObjects(ctx, e.objectReader, e.configurationScope())
	if err != nil {
		return nil, err
	}
	o.Secrets = append(secrets, e.substituteUnreadableSecrets(&o)...)
	config := &configurationreader.Configuration{Nodes: o.Nodes}
	config.Snapshot, config.Problems = snapshot.BuildSnapshot(o)
	return config, nil
}

// listPasswordSecrets lists the Secrets, if a BGPPeer names one.
func (e *Explainer) listPasswordSecrets(ctx context.Context) ([]snapshot.BasicAuthSecret, error) {
	var peers v1beta2.BGPPeerList
	if err := e.objectReader.List(ctx, &peers, client.InNamespace(e.gantryNamespace)); err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(peers.Items, func(p v1beta2.BGPPeer) bool { return p.Spec.PasswordSecret.Name != "" }) {
		e.objectReader.AssumeNoObjectsOfKind(&corev1.SecretList{}, e.gantryNamespace)
		return nil, nil
	}
	ofType := fields.OneTermEqualSelector("type", string(corev1.SecretTypeBasicAuth))
	if err := e.objectReader.ListAndCacheKinds(ctx, objects.ListRequest{List: &corev1.SecretList{}, Namespace: e.gantryNamespace, Fields: ofType}); err != nil {
		return nil, err
	}
	var listed corev1.SecretList
	if err := e.objectReader.List(ctx, &listed, client.InNamespace(e.gantryNamespace)); err != nil {
		return nil, err
	}
	var out []snapshot.BasicAuthSecret
	for i := range listed.Items {
		if secret, ok := configuration.BasicAuthSecretOf(&listed.Items[i]); ok {
			out = append(out, secret)
		}
	}
	return out, nil
}

// substituteUnreadableSecrets stand for Secrets that the user may not read: they are assumed to be
// as they should.
func (e *Explainer) substituteUnreadableSecrets(o *snapshot.ConfigurationObjects) []snapshot.BasicAuthSecret {
	if !e.objectReader.LacksRightToRead("secrets") {
		return nil
	}
	var out []snapshot.BasicAuthSecret
	for i := range o.BGPPeers {
		if name := o.BGPPeers[i].Spec.PasswordSecret.Name; name != "" {
			out = append(out, snapshot.BasicAuthSecret{Name: name, Password: "unknown", HasPassword: true})
		}
	}
	return out
}

// newAnnouncementExplainer makes the Reader answer like the cache of the controller.
func (e *Explainer) newAnnouncementExplainer(ctx context.Context) (*announcedcondition.Explainer, error) {
	scope := e.configurationScope()
	if err := announcedcondition.RegisterIndexes(ctx, e.objectReader, scope); err != nil {
		return nil, err
	}
	return announcedcondition.NewExplainer(e.objectReader, scope), nil
}

// addMissingRightsAndDocURL adds to a report what does not depend on its subject.
func (e *Explainer) addMissingRightsAndDocURL(r *report.Report) *report.Report {
	for _, m := range e.objectReader.MissingRights() {
		r.MissingRights = append(r.MissingRights, m.String())
	}
	if r.Documentation == "" && r.Reason != "" && r.Result != report.ResultWell {
		r.Documentation = documentationURLOfReason(r.Reason)
	}
	return r
}

// joinFirstElements joins the first elements, and says how many more there are.
func joinFirstElements(all []string, limit int) string {
	if len(all) <= limit {
		return strings.Join(all, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(all[:limit], ", "), len(all)-limit)
}

const maxListedElements = 6
