package migrate

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"github.com/gantry-lb/gantry/api/names"
)

// InstallationWay is how MetalLB was installed.
type InstallationWay string

// The ways.
const (
	// WayNone means that no program of MetalLB is in the cluster.
	WayNone InstallationWay = "None"
	// WayHelm means Helm, WayOperator MetalLB's operator, and WayManifests anything else, such as
	// kubectl apply.
	WayHelm      InstallationWay = "Helm"
	WayOperator  InstallationWay = "Operator"
	WayManifests InstallationWay = "Manifests"
)

// The modes in which MetalLB speaks BGP.
const (
	bgpModeNative = "native"
	bgpModeFRR    = "frr"
	bgpModeFRRK8s = "frr-k8s"
)

// Workload is a Deployment or a DaemonSet.
type Workload struct {
	Kind      ObjectKind
	Key       types.NamespacedName
	Component string // names.ComponentController, names.ComponentSpeaker or ""
	// Image is that of the main container, HostPorts are the ports on the nodes.
	Image        string
	HostPorts    []int64
	Replicas     int64
	arguments    []string
	environment  map[string]string
	labels       map[string]string
	annotations  map[string]string
	isHostAccess bool
}

// CRD is a CustomResourceDefinition of MetalLB's API.
type CRD struct {
	Name string
	// ConversionService is the Service of its conversion webhook; empty without one.
	ConversionService types.NamespacedName
	owner             ownership
}

// ownership is who takes an object for its own.
type ownership struct {
	// helmRelease is the release of Helm; empty for none.
	helmRelease types.NamespacedName
	// isKept says that an upgrade with Helm does not delete the object.
	isKept bool
	// byOperator says that the Operator Lifecycle Manager installed it.
	byOperator bool
}

// Webhook is a ValidatingWebhookConfiguration of MetalLB.
type Webhook struct {
	Name    string
	Service types.NamespacedName
	// HasEndpoint says whether anybody answers for it.
	HasEndpoint bool
}

// LoadBalancerService is a Service of type LoadBalancer.
type LoadBalancerService struct {
	Key         types.NamespacedName
	Class       string
	Addresses   []string
	annotations map[string]string
	isLocal     bool
}

// Findings are what was read of a cluster.
type Findings struct {
	// GantryNamespace is where Gantry is, or will be; Namespace is that of MetalLB.
	GantryNamespace, Namespace string
	// HelmReleaseOfGantry gets the CRDs, if it is not empty.
	HelmReleaseOfGantry string
	Way                 InstallationWay
	// Version is that of MetalLB's images, such as v0.14.9; empty if it is unknown.
	Version string
	// BGPMode is native, frr or frr-k8s; empty without speakers.
	BGPMode           string
	LoadBalancerClass string
	Workloads         []Workload
	OwnWorkloads      []Workload
	Release           HelmRelease
	CRDs              []CRD
	Configuration     map[ObjectKind][]unstructured.Unstructured
	OldPools          []string
	// FRRK8s are the programs of FRR-K8s, and FRRK8sWebhooks its webhooks.
	FRRK8s         []Workload
	FRRK8sWebhooks []string
	// FRRConfigurations are those of users, and MetalLBFRRConfigurations those that the speakers of
	// MetalLB write.
	FRRConfigurations, MetalLBFRRConfigurations []types.NamespacedName
	Webhooks                                    []Webhook
	// ExcludeList is MetalLB's list of interfaces on which nothing is announced; nil without one.
	// OwnExcludeList is that of Gantry.
	ExcludeList, OwnExcludeList []string
	// HasFRRExtras says that a ConfigMap has lines for the configuration of FRR.
	HasFRRExtras bool
	Services     []LoadBalancerService
	// OtherWriters says which other programs gave Services their addresses.
	OtherWriters      []string
	namespaces, nodes []unstructured.Unstructured
	// MissingRights are the rights that the user lacks: what needs them is unknown.
	MissingRights []string
	// Unreadable are kinds that cannot be listed, with the API server's reason.
	Unreadable []string
}

// findingsReader reads the Findings.
type findingsReader struct {
	access ClusterAccess
	*Findings
}

// ReadQuestion says what to read.
type ReadQuestion struct {
	// GantryNamespace is where Gantry is, or will be.
	GantryNamespace string
	// HelmReleaseOfGantry is the release of Gantry that gets the CRDs; empty for none.
	HelmReleaseOfGantry string
}

// ReadFindings reads the cluster. A right that the user lacks, or a kind that does not exist, is no
// error.
func ReadFindings(ctx context.Context, access ClusterAccess, q ReadQuestion) (*Findings, error) {
	r := &findingsReader{access, &Findings{GantryNamespace: q.GantryNamespace, HelmReleaseOfGantry: q.HelmReleaseOfGantry, Configuration: map[ObjectKind][]unstructured.Unstructured{}}}
	for _, read := range []func(context.Context) error{
		r.readWorkloads, r.readCRDs, r.readRelease, r.readConfiguration, r.readWebhooks, r.readConfigMaps, r.readServices,
	} {
		if err := read(ctx); err != nil {
			return nil, err
		}
	}
	r.findWay()
	return r.Findings, nil
}

// listObjects lists objects. A missing right or an absent kind gives none.
func (r *findingsReader) listObjects(ctx context.Context, k ObjectKind, q ListQuery) ([]unstructured.Unstructured, error) {
	items, err := r.access.ListObjects(ctx, k, q)
	switch {
	case err == nil:
		return items, nil
	case apierrors.IsForbidden(err):
		right := missingRightText(k, q.Namespace)
		if !slices.Contains(r.MissingRights, right) {
			r.MissingRights = append(r.MissingRights, right)
		}
		return nil, nil
	case apierrors.IsNotFound(err) || meta.IsNoMatchError(err):
		return nil, nil
	case strings.Contains(err.Error(), "conversion webhook"):
		r.Unreadable = append(r.Unreadable, fmt.Sprintf("%s: %v", k, err))
		return nil, nil
	}
	return nil, fmt.Errorf("reading the %s: %w", k, err)
}

// metalLBName is the value of the labels of MetalLB's objects, by its manifests and by its chart.
// frrK8sName is that of FRR-K8s.
const metalLBName, frrK8sName = "metallb", "frr-k8s"

// The labels by which MetalLB's manifests name its programs.
const manifestNameLabel, manifestComponentLabel = "app", "component"

func (r *findingsReader) readWorkloads(ctx context.Context) error {
	for _, k := range []ObjectKind{deploymentKind, daemonSetKind} {
		for _, l := range []map[string]string{{manifestNameLabel: metalLBName}, {names.LabelAppName: metalLBName}, {names.LabelAppName: names.AppName}, {names.LabelAppName: frrK8sName}} {
			items, err := r.listObjects(ctx, k, ListQuery{Labels: l})
			if err != nil {
				return err
			}
			for i := range items {
				w := newWorkload(k, &items[i])
				switch isKnown := slices.ContainsFunc(r.Workloads, func(x Workload) bool { return x.Key == w.Key && x.Kind == w.Kind }); {
				case l[names.LabelAppName] == names.AppName:
					r.OwnWorkloads = append(r.OwnWorkloads, w)
				case l[names.LabelAppName] == frrK8sName:
					r.FRRK8s = append(r.FRRK8s, w)
				case !isKnown:
					r.Workloads = append(r.Workloads, w)
				}
			}
		}
	}
	r.Namespace = r.GantryNamespace
	for i := range r.Workloads {
		r.readProgram(&r.Workloads[i])
	}
	return nil
}

// readProgram takes from a program of MetalLB what it says about the installation.
func (r *findingsReader) readProgram(w *Workload) {
	if w.Component == "" {
		return
	}
	r.Namespace = w.Key.Namespace
	if _, tag, hasTag := strings.Cut(w.Image[strings.LastIndex(w.Image, "/")+1:], ":"); hasTag {
		r.Version, _, _ = strings.Cut(tag, "@")
	}
	for _, a := range w.arguments {
		if class, isClass := strings.CutPrefix(a, "--lb-class="); isClass {
			r.LoadBalancerClass = class
		}
	}
	if w.Component == names.ComponentSpeaker {
		r.BGPMode = cmp.Or(w.environment["METALLB_BGP_TYPE"], bgpModeNative)
	}
}

func newWorkload(k ObjectKind, o *unstructured.Unstructured) Workload {
	w := Workload{Kind: k, Key: types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}, environment: map[string]string{}, labels: o.GetLabels(), annotations: o.GetAnnotations()}
	w.Component = cmp.Or(w.labels[names.LabelComponent], w.labels[manifestComponentLabel])
	if w.Component != names.ComponentController && w.Component != names.ComponentSpeaker {
		w.Component = ""
	}
	w.isHostAccess, _, _ = unstructured.NestedBool(o.Object, "spec", "template", "spec", "hostNetwork")
	replicas, hasReplicas, _ := unstructured.NestedInt64(o.Object, "spec", "replicas")
	if w.Replicas = replicas; !hasReplicas {
		w.Replicas = 1
	}
	containers, _, _ := unstructured.NestedSlice(o.Object, "spec", "template", "spec", "containers")
	for _, c := range containers {
		if container, isMap := c.(map[string]any); isMap {
			w.addContainer(container)
		}
	}
	return w
}

// addContainer takes the image and the flags of the main container, and the ports of all.
func (w *Workload) addContainer(c map[string]any) {
	if name, _, _ := unstructured.NestedString(c, "name"); name == w.Component {
		w.Image, _, _ = unstructured.NestedString(c, "image")
		w.arguments, _, _ = unstructured.NestedStringSlice(c, "args")
		variables, _, _ := unstructured.NestedSlice(c, "env")
		for _, v := range variables {
			if variable, isMap := v.(map[string]any); isMap {
				name, _, _ := unstructured.NestedString(variable, "name")
				w.environment[name], _, _ = unstructured.NestedString(variable, "value")
			}
		}
	}
	ports, _, _ := unstructured.NestedSlice(c, "ports")
	for _, p := range ports {
		if port, isMap := p.(map[string]any); isMap && w.isHostAccess {
			number, _, _ := unstructured.NestedInt64(port, "containerPort")
			w.HostPorts = append(w.HostPorts, number)
		}
	}
}

// findWay says how MetalLB was installed.
func (r *findingsReader) findWay() {
	isOperator := func(c CRD) bool { return c.owner.byOperator }
	switch {
	case len(r.Workloads) == 0:
		r.Way = WayNone
	case slices.ContainsFunc(r.CRDs, isOperator) || slices.ContainsFunc(r.Workloads, func(w Workload) bool { return w.Component == "" && strings.Contains(w.Key.Name, "operator") }):
		r.Way = WayOperator
	case slices.ContainsFunc(r.Workloads, func(w Workload) bool { return helmReleaseOf(w.annotations).Name != "" }):
		r.Way = WayHelm
	default:
		r.Way = WayManifests
	}
}

// hasMetalLBComponent reports whether a program of MetalLB runs, or could. It does if that is
// unknown, so that nothing is removed that somebody uses.
func (f *Findings) hasMetalLBComponent(component string) bool {
	return f.lacksRight(deploymentKind) || slices.ContainsFunc(f.Workloads, func(w Workload) bool { return w.Component == component && w.Replicas > 0 })
}

// lacksRight reports whether the user may not list a kind in all namespaces.
func (f *Findings) lacksRight(k ObjectKind) bool {
	return slices.Contains(f.MissingRights, missingRightText(k, ""))
}

// missingRightText names the right to list a kind in a namespace, or in all if it is empty.
func missingRightText(k ObjectKind, namespace string) string {
	if namespace == "" {
		return "list " + k.String()
	}
	return "list " + k.String() + " in namespace " + namespace
}
