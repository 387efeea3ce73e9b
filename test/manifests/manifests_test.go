// Package manifests applies a directory of manifests, valid and invalid, to a real API server with
// the real controller, and checks the result of each. The manifests are such as users of the
// metallb.io API write. The first lines of a file are expectations:
//
//	# valid KIND/NAME                      the condition gantry.dev/Valid is True
//	# refused KIND/NAME: TEXT              the API server refuses it with TEXT
//	# problem KIND/NAME REASON: TEXT       the condition is False with REASON and TEXT
//	# address NAMESPACE/NAME: A[, B]       the Service has these addresses, in this order
//	# pending NAMESPACE/NAME REASON: TEXT  the Service has none, for this REASON and TEXT
//	# keeps NAMESPACE/NAME REASON: TEXT    the Service has some, but not those that it asks for,
//	                                       for this REASON and TEXT
//	# silent NAMESPACE/NAME REASON: TEXT   no node announces the Service, for this REASON and
//	                                       TEXT; without them, it has no condition Announced
//	# from NAMESPACE/NAME: POOL[, POOL]    the annotations name these pools
//	# counts POOL: A B C D                 the counts in the pool's status: assigned IPv4,
//	                                       available IPv4, assigned IPv6, available IPv6
//	# reserved NAME: A[, B]                the AddressReservation keeps these addresses
//	# unreserved NAME REASON: TEXT         the AddressReservation does not get what it asks for
//
// Such lines at the head of a later document begin a new step, after the steps before it have been
// applied and checked. In a file with steps, an object may appear again with an edit, and one more
// line is possible:
//
//	# delete KIND/NAME                     deletes an object of an earlier step.
//
// The optional webhook has to refuse every problem with the same text. It warns of what another
// object may still mend: a reference to an object that may be created later, and an overlap with
// another pool.
package manifests

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"
	"sigs.k8s.io/yaml"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1alpha1"
	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/api/v1beta2"
	validate "github.com/gantry-lb/gantry/controller/admission"
	"github.com/gantry-lb/gantry/internal/configuration"
	"github.com/gantry-lb/gantry/internal/snapshot"
	"github.com/gantry-lb/gantry/test/apiserver"
)

// awaitTimeout limits the wait for the controller.
const awaitTimeout = 3 * time.Minute

// expectation is one line at the head of a document.
type expectation struct{ outcomeKeyword, objectKindAndName, expectedReason, expectedTextPart string }

var (
	expectationCommentPattern    = regexp.MustCompile(`^# (valid|refused|problem|address|pending|keeps|silent|from|counts|reserved|unreserved|delete) (\S+?):?(?: ([A-Z]\w+))?(?:: ?(.*)| (\d\S.*))?$`)
	yamlDocumentSeparatorPattern = regexp.MustCompile(`(?m)^---\s*$`)
)

// manifestOutcomeChecker is the client and the webhook that all files share.
type manifestOutcomeChecker struct {
	apiClient        client.Client
	webhookValidator *validate.ConfigurationValidator
}

func TestManifestFilesHaveExpectedOutcomes(t *testing.T) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) < 60 {
		t.Fatalf("%d manifests, %v; want at least 60", len(files), err)
	}
	config := apiserver.StartUntilTestEnds(t)
	buildAndStartController(t, config)
	scheme, err := configuration.NewScheme()
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	createNodesInTwoRacks(t, c)
	b := &manifestOutcomeChecker{c, &validate.ConfigurationValidator{
		Reader: c, ConfigurationScope: configuration.ConfigurationScope{Namespace: names.DefaultNamespace}, CreationTimeOfNewObject: time.Now,
		LatestSnapshot: func() *snapshot.Snapshot { return nil }, LatestClusterAddresses: func() []snapshot.ClusterAddressRange { return nil },
		ReadSecretsOfPeers: configuration.NewPasswordSecrets(configuration.PasswordSecretsOptions{LiveReader: c, Namespace: names.DefaultNamespace, Now: time.Now, Log: slog.New(slog.DiscardHandler)}).PeekSecretsOfPeers,
	}}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) { b.applyManifestFileAndCheckOutcomes(t, file) })
	}
}

// buildAndStartController runs the controller's program, outside of a Pod.
func buildAndStartController(t *testing.T, config *rest.Config) {
	t.Helper()
	dir := t.TempDir()
	binary, kubeconfig := filepath.Join(dir, "controller"), filepath.Join(dir, "kubeconfig")
	build := exec.Command("go", "build", "-o", binary, "../../controller")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the controller: %v\n%s", err, out)
	}
	k := clientcmdapi.NewConfig()
	k.Clusters["c"] = &clientcmdapi.Cluster{Server: config.Host, CertificateAuthority: config.CAFile}
	k.AuthInfos["u"] = &clientcmdapi.AuthInfo{Token: config.BearerToken}
	k.Contexts["x"] = &clientcmdapi.Context{Cluster: "c", AuthInfo: "u"}
	k.CurrentContext = "x"
	if err := clientcmd.WriteToFile(*k, kubeconfig); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary, "--kubeconfig", kubeconfig, "--leader-elect=false", "--metrics-bind-address=0", "--health-probe-bind-address=0")
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if text, err := os.ReadFile(log.Name()); err == nil && t.Failed() {
			t.Logf("the log of the controller:\n%s", text)
		}
	})
}

// manifestStep is a group of objects that are applied together, and the expected results.
type manifestStep struct {
	expectations []expectation
	objects      []*unstructured.Unstructured
}

// parseManifestSteps reads the steps of a file.
func parseManifestSteps(t *testing.T, file string) []manifestStep {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var steps []manifestStep
	for _, doc := range yamlDocumentSeparatorPattern.Split(string(text), -1) {
		if head := parseExpectations(t, doc); len(head) > 0 {
			steps = append(steps, manifestStep{expectations: head})
		}
		if len(steps) == 0 {
			t.Fatalf("%s has no expectation", file)
		}
		o := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte(doc), &o.Object); err != nil {
			t.Fatalf("reading %s: %v", file, err)
		}
		if o.GetKind() != "" {
			s := &steps[len(steps)-1]
			s.objects = append(s.objects, o)
		}
	}
	return steps
}

// parseExpectations reads the lines at the head of a document.
func parseExpectations(t *testing.T, doc string) (out []expectation) {
	t.Helper()
	for _, line := range strings.Split(strings.TrimLeft(doc, "\n"), "\n") {
		if !strings.HasPrefix(line, "#") {
			break
		}
		m := expectationCommentPattern.FindStringSubmatch(line)
		if m == nil {
			t.Fatalf("the line %q is not an expectation", line)
		}
		out = append(out, expectation{outcomeKeyword: m[1], objectKindAndName: m[2], expectedReason: m[3], expectedTextPart: m[4] + m[5]})
	}
	return out
}

// applyManifestFileAndCheckOutcomes applies the steps of a file, checks the expectations of each,
// and removes the objects at the end.
func (b *manifestOutcomeChecker) applyManifestFileAndCheckOutcomes(t *testing.T, file string) {
	steps := parseManifestSteps(t, file)
	var all []*unstructured.Unstructured
	for _, s := range steps {
		all = append(all, s.objects...)
	}
	t.Cleanup(func() { b.removeObjects(t, all) })
	write := func(o *unstructured.Unstructured) error {
		return b.apiClient.Create(t.Context(), o, client.FieldValidation(metav1.FieldValidationStrict))
	}
	if len(steps) > 1 {
		write = func(o *unstructured.Unstructured) error {
			// A user may edit what the controller wrote.
			return b.apiClient.Apply(t.Context(), client.ApplyConfigurationFromUnstructured(o), client.FieldOwner("a-user"), client.ForceOwnership)
		}
	}
	for _, s := range steps {
		b.deleteAndApplyStepObjects(t, s, all, write)
		for _, e := range s.expectations {
			if e.outcomeKeyword != "refused" && e.outcomeKeyword != "delete" {
				b.awaitExpectation(t, e)
			}
		}
	}
}

// deleteAndApplyStepObjects deletes and writes the objects of a step.
func (b *manifestOutcomeChecker) deleteAndApplyStepObjects(t *testing.T, s manifestStep, all []*unstructured.Unstructured, write func(*unstructured.Unstructured) error) {
	for _, e := range s.expectations {
		if e.outcomeKeyword != "delete" {
			continue
		}
		i := slices.IndexFunc(all, func(o *unstructured.Unstructured) bool { return o.GetKind()+"/"+o.GetName() == e.objectKindAndName })
		if i < 0 {
			t.Fatalf("%s is to be deleted, but the file has no such object", e.objectKindAndName)
		}
		if err := b.apiClient.Delete(t.Context(), all[i].DeepCopy()); err != nil {
			t.Fatal(err)
		}
	}
	for _, o := range s.objects {
		self := o.GetKind() + "/" + o.GetName()
		want := func(verb string) func(expectation) bool {
			return func(e expectation) bool { return e.outcomeKeyword == verb && e.objectKindAndName == self }
		}
		if i := slices.IndexFunc(s.expectations, want("problem")); i >= 0 {
			b.checkWebhookRefusesWithSameText(t, o, s.expectations[i])
		}
		if o.GetKind() == "Service" {
			b.awaitValidPoolsKnownToController(t, s.expectations)
		}
		err := write(o.DeepCopy())
		i := slices.IndexFunc(s.expectations, want("refused"))
		switch {
		case i < 0 && err != nil:
			t.Fatalf("%s is refused: %v", self, err)
		case i >= 0 && err == nil:
			t.Errorf("%s is accepted, want an error with %q", self, s.expectations[i].expectedTextPart)
		case i >= 0 && !strings.Contains(err.Error(), s.expectations[i].expectedTextPart):
			t.Errorf("%s is refused with %v, want %q", self, err, s.expectations[i].expectedTextPart)
		case i >= 0 && strings.Contains(err.Error(), "evaluating rule"):
			t.Errorf("%s is refused with %v, which shows the rule instead of a message", self, err)
		}
		given := func(e expectation) bool {
			return e.outcomeKeyword == "address" && e.objectKindAndName == o.GetNamespace()+"/"+o.GetName()
		}
		if i := slices.IndexFunc(s.expectations, given); i >= 0 && o.GetKind() == "Service" {
			b.awaitAddressBrieflyToKeepOrder(t, s.expectations[i])
		}
	}
}

// awaitValidPoolsKnownToController waits until the controller knows the pools that exist and should
// be valid. A Service that is created after this can get an address from each of them. Without it,
// the Service could come first: the controller watches pools and Services separately.
func (b *manifestOutcomeChecker) awaitValidPoolsKnownToController(t *testing.T, expected []expectation) {
	t.Helper()
	for _, e := range expected {
		name, isPool := strings.CutPrefix(e.objectKindAndName, "IPAddressPool/")
		if e.outcomeKeyword != "valid" || !isPool {
			continue
		}
		key := client.ObjectKey{Namespace: names.DefaultNamespace, Name: name}
		if b.apiClient.Get(t.Context(), key, &v1beta1.IPAddressPool{}) == nil {
			b.awaitExpectation(t, e)
		}
	}
}

// awaitExpectation waits until the expectation is met.
func (b *manifestOutcomeChecker) awaitExpectation(t *testing.T, e expectation) {
	t.Helper()
	got := "nothing"
	for end := time.Now().Add(awaitTimeout); time.Now().Before(end); {
		var met bool
		if met, got = b.isExpectationMet(t.Context(), e); met {
			return
		}
		select {
		case <-t.Context().Done():
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
	t.Errorf("want %s %s %s %q, got %s", e.outcomeKeyword, e.objectKindAndName, e.expectedReason, e.expectedTextPart, got)
}

// isExpectationMet reports whether the expectation is met, and describes the current state.
func (b *manifestOutcomeChecker) isExpectationMet(ctx context.Context, e expectation) (bool, string) {
	first, name, _ := strings.Cut(e.objectKindAndName, "/")
	switch e.outcomeKeyword {
	case "reserved", "unreserved":
		return b.isReservationAsExpected(ctx, e)
	case "counts":
		return b.isPoolCountsExpectationMet(ctx, e)
	case "address", "pending", "keeps", "silent", "from":
		var s corev1.Service
		if err := b.apiClient.Get(ctx, client.ObjectKey{Namespace: first, Name: name}, &s); err != nil {
			return false, err.Error()
		}
		var ips []string
		for _, in := range s.Status.LoadBalancer.Ingress {
			ips = append(ips, in.IP)
		}
		return isServiceAsExpected(&s, ips, e)
	}
	o := &unstructured.Unstructured{}
	o.SetGroupVersionKind(v1beta1.GroupVersion.WithKind(first))
	if err := b.apiClient.Get(ctx, client.ObjectKey{Namespace: names.DefaultNamespace, Name: name}, o); err != nil {
		return false, err.Error()
	}
	c := findValidCondition(o)
	if c == nil || c.ObservedGeneration != o.GetGeneration() {
		return false, describeCondition(c)
	}
	if e.outcomeKeyword == "valid" {
		return c.Status == metav1.ConditionTrue, describeCondition(c)
	}
	return c.Status == metav1.ConditionFalse && c.Reason == e.expectedReason && strings.Contains(c.Message, e.expectedTextPart), describeCondition(c)
}

// isServiceAsExpected is isExpectationMet for a Service with these addresses.
func isServiceAsExpected(s *corev1.Service, ips []string, e expectation) (bool, string) {
	c := meta.FindStatusCondition(s.Status.Conditions, names.ConditionAddressAssigned)
	got := strings.Join(ips, ", ")
	why := c != nil && c.Reason == e.expectedReason && strings.Contains(c.Message, e.expectedTextPart)
	switch e.outcomeKeyword {
	case "address":
		return c != nil && got == e.expectedTextPart && s.Annotations[names.AnnotationAllocatedFromPool] != "", got + " " + describeCondition(c)
	case "from":
		first, _, several := strings.Cut(e.expectedTextPart, ", ")
		all, there := s.Annotations[names.AnnotationAllocatedFromSeveralPools]
		from := s.Annotations[names.AnnotationAllocatedFromPool]
		return from == first && there == several && (!several || strings.ReplaceAll(all, ",", ", ") == e.expectedTextPart), from + "; " + all
	case "silent":
		c := meta.FindStatusCondition(s.Status.Conditions, names.ConditionAnnounced)
		if e.expectedReason == "" {
			return c == nil, describeCondition(c)
		}
		return c != nil && c.Status == metav1.ConditionFalse && c.Reason == e.expectedReason && strings.Contains(c.Message, e.expectedTextPart), describeCondition(c)
	case "keeps":
		return why && len(ips) > 0 && c.Status == metav1.ConditionTrue, got + " " + describeCondition(c)
	}
	return why && len(ips) == 0 && c.Status == metav1.ConditionFalse, got + " " + describeCondition(c)
}

// isReservationAsExpected is isExpectationMet for an AddressReservation.
func (b *manifestOutcomeChecker) isReservationAsExpected(ctx context.Context, e expectation) (bool, string) {
	var r v1alpha1.AddressReservation
	if err := b.apiClient.Get(ctx, client.ObjectKey{Namespace: names.DefaultNamespace, Name: e.objectKindAndName}, &r); err != nil {
		return false, err.Error()
	}
	c := meta.FindStatusCondition(r.Status.Conditions, names.ConditionReservationEffective)
	got := strings.Join(r.Status.Addresses, ", ") + " " + describeCondition(c)
	if c == nil || c.ObservedGeneration != r.Generation {
		return false, got
	}
	if e.outcomeKeyword == "reserved" {
		return c.Status == metav1.ConditionTrue && strings.Join(r.Status.Addresses, ", ") == e.expectedTextPart, got
	}
	return c.Status == metav1.ConditionFalse && c.Reason == e.expectedReason && strings.Contains(c.Message, e.expectedTextPart), got
}

// isPoolCountsExpectationMet is isExpectationMet for the counters of a pool.
func (b *manifestOutcomeChecker) isPoolCountsExpectationMet(ctx context.Context, e expectation) (bool, string) {
	var p v1beta1.IPAddressPool
	if err := b.apiClient.Get(ctx, client.ObjectKey{Namespace: names.DefaultNamespace, Name: e.objectKindAndName}, &p); err != nil {
		return false, err.Error()
	}
	s := p.Status
	got := fmt.Sprintln(s.AssignedIPv4, s.AvailableIPv4, s.AssignedIPv6, s.AvailableIPv6)
	return strings.TrimSpace(got) == e.expectedTextPart, got
}

// findValidCondition returns the condition gantry.dev/Valid of an object, or nil.
func findValidCondition(o *unstructured.Unstructured) *metav1.Condition {
	list, _, _ := unstructured.NestedSlice(o.Object, "status", "gantry", "conditions")
	text, _ := json.Marshal(list)
	var conditions []metav1.Condition
	_ = json.Unmarshal(text, &conditions)
	return meta.FindStatusCondition(conditions, names.ConditionValid)
}

func describeCondition(c *metav1.Condition) string {
	if c == nil {
		return "no condition"
	}
	return fmt.Sprintf("%s %s: %s", c.Status, c.Reason, c.Message)
}

// checkWebhookRefusesWithSameText sends an object with a problem to the webhook, before it is
// created, and checks the answer.
func (b *manifestOutcomeChecker) checkWebhookRefusesWithSameText(t *testing.T, o *unstructured.Unstructured, e expectation) {
	t.Helper()
	raw, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	req := admission.Request{}
	req.Operation, req.Namespace, req.Name = admissionv1.Create, o.GetNamespace(), o.GetName()
	req.Kind = metav1.GroupVersionKind{Group: "metallb.io", Version: o.GroupVersionKind().Version, Kind: o.GetKind()}
	req.Object.Raw = raw
	r := b.webhookValidator.Handle(t.Context(), req)
	said := strings.Join(r.Warnings, "; ")
	if r.Result != nil {
		said += r.Result.Message
	}
	problem := snapshot.Problem{Object: snapshot.ObjectReference{Name: o.GetName()}, Reason: names.Reason(e.expectedReason), Text: said}
	if problem.IsOnlyAdvice() {
		return // this webhook does not know the cluster's networks
	}
	mayBeMended := problem.IsDanglingReference() || problem.IsOverlapWithOtherPool()
	if r.Allowed != mayBeMended && e.expectedReason != string(names.ReasonDuplicate) || !strings.Contains(said, e.expectedTextPart) {
		t.Errorf("the webhook allows %s: %v, with the text %q; want %q", e.objectKindAndName, r.Allowed, said, e.expectedTextPart)
	}
}

// removeObjects deletes the objects and waits until they are gone.
func (b *manifestOutcomeChecker) removeObjects(t *testing.T, objects []*unstructured.Unstructured) {
	ctx, cancel := context.WithTimeout(context.Background(), awaitTimeout)
	defer cancel()
	for _, o := range slices.Backward(objects) {
		if o.GetKind() == "Namespace" {
			continue // no controller runs here that completes the deletion of a namespace
		}
		if err := b.apiClient.Delete(ctx, o); client.IgnoreNotFound(err) != nil {
			t.Errorf("deleting %s/%s: %v", o.GetKind(), o.GetName(), err)
		}
		for !apierrors.IsNotFound(b.apiClient.Get(ctx, client.ObjectKeyFromObject(o), o.DeepCopy())) && ctx.Err() == nil {
		}
	}
	pool := func(o *unstructured.Unstructured) bool { return o.GetKind() == "IPAddressPool" }
	if slices.ContainsFunc(objects, pool) {
		b.awaitControllerSeesNoPools(ctx, t)
	}
}

// TestBGPPeerConversionLosesNoField writes a BGPPeer in each version and reads it in the other one.
// No field may be lost.
func TestBGPPeerConversionLosesNoField(t *testing.T) {
	config := apiserver.StartUntilTestEnds(t)
	scheme, err := configuration.NewScheme()
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	old := &v1beta1.BGPPeer{Spec: v1beta2.BGPPeerSpec{MyASN: 64512, PeerASN: 64513, PeerAddress: "192.0.2.1"}}
	old.Namespace, old.Name = names.DefaultNamespace, "old"
	if err := c.Create(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	var read v1beta2.BGPPeer
	if err := c.Get(t.Context(), client.ObjectKeyFromObject(old), &read); err != nil {
		t.Fatal(err)
	}
	if read.Spec.HoldTime != nil || read.Spec.KeepaliveTime != nil || read.Spec.PeerPort != 179 {
		t.Errorf("a v1beta1 peer without timers is %+v in v1beta2", read.Spec)
	}
	now := &v1beta2.BGPPeer{Spec: v1beta2.BGPPeerSpec{
		MyASN: 64512, DynamicASN: v1beta2.DynamicASNExternal, Interface: "eth0", VRFName: "red", EnableGracefulRestart: true,
		ConnectTime: &metav1.Duration{Duration: time.Second}, LocalASN: 7,
	}}
	now.Namespace, now.Name = names.DefaultNamespace, "new"
	if err := c.Create(t.Context(), now); err != nil {
		t.Fatal(err)
	}
	var back v1beta1.BGPPeer
	if err := c.Get(t.Context(), client.ObjectKeyFromObject(now), &back); err != nil {
		t.Fatal(err)
	}
	if back.Spec.DynamicASN != "external" || back.Spec.Interface != "eth0" || back.Spec.VRFName != "red" || !back.Spec.EnableGracefulRestart || back.Spec.LocalASN != 7 {
		t.Errorf("a v1beta2 peer is %+v in v1beta1", back.Spec)
	}
	change := client.RawPatch(types.MergePatchType, []byte(`{"spec":{"enableGracefulRestart":false}}`))
	if err := c.Patch(t.Context(), &back, change); err == nil || !strings.Contains(err.Error(), "enableGracefulRestart cannot be changed: delete the BGPPeer") {
		t.Errorf("a change of enableGracefulRestart gives %v", err)
	}
}
