package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/test/packages"
)

// serviceAccountRequest is a request that a service account made.
type serviceAccountRequest struct {
	account                string
	onlyInGantryNamespace  bool
	group                  string
	resourceAndSubresource string // with the subresource after a slash
	verb                   string
	objectName             string // empty for all objects
}

// serviceAccountRight is a right of a service account.
type serviceAccountRight struct {
	serviceAccountRequest        // without the name of an object
	objectNames           string // joined by commas; empty for all objects
}

func (d serviceAccountRight) String() string {
	where := "everywhere"
	if d.onlyInGantryNamespace {
		where = "in " + names.DefaultNamespace
	}
	return strings.TrimSpace(fmt.Sprintf("%s: %s %s.%s %s %s", d.account, d.verb, d.resourceAndSubresource, d.group, where, d.objectNames))
}

// covers reports whether the right allows a request.
func (d serviceAccountRight) covers(r serviceAccountRequest) bool {
	if d.objectNames != "" && !slices.Contains(strings.Split(d.objectNames, ","), r.objectName) {
		return false
	}
	r.objectName, r.onlyInGantryNamespace = "", r.onlyInGantryNamespace && d.onlyInGantryNamespace
	return d.serviceAccountRequest == r
}

// reasonByRightUnusedInTest are rights that this test does not use, and what would use them.
var reasonByRightUnusedInTest = map[string]string{
	"patch events":                 "an event that is repeated",
	"get events":                   "an event that is repeated",
	"update secrets gantry-gossip": "the gossip key is replaced",
	"update secrets gantry-webhook-certificate": "the webhook's certificate expires soon",
}

// checkRBACMatchesAuditLog compares the audit log of a test that installed packages with the rights
// that these grant. A denied request means that a right is missing or that a policy is too strict,
// and a right without requests is one too many.
func checkRBACMatchesAuditLog(t *testing.T, log string, rights []serviceAccountRight) {
	t.Helper()
	done, refused := readAuditedActions(t, log)
	for d, message := range refused {
		if isRefusedByPolicy(message) {
			t.Errorf("refused by a policy: %s", message)
			continue
		}
		// During the uninstallation a Pod may still run after its rights are gone.
		if !slices.ContainsFunc(rights, func(r serviceAccountRight) bool { return r.covers(d) }) {
			t.Errorf("refused: %s", message)
		}
	}
	for _, right := range rights {
		if isRightUsed(right, done) || reasonByRightUnusedInTest[strings.TrimSpace(right.verb+" "+right.resourceAndSubresource+" "+right.objectNames)] != "" {
			continue
		}
		t.Errorf("never used: %v", right)
	}
}

// isRightUsed reports whether one of the actions needs the right. A watch needs list too, if the
// API server cannot send the initial objects in the watch, and list allows get. An apply of a new
// object needs create.
func isRightUsed(right serviceAccountRight, done map[serviceAccountRequest]bool) bool {
	verbs := []string{right.verb}
	if right.verb == "get" || right.verb == "list" {
		verbs = append(verbs, "list", "watch")
	}
	if right.verb == "create" {
		verbs = append(verbs, "patch")
	}
	for d := range done {
		if !slices.Contains(verbs, d.verb) {
			continue
		}
		if d.verb = right.verb; right.covers(d) && d.onlyInGantryNamespace == right.onlyInGantryNamespace {
			return true
		}
	}
	return false
}

// readAuditedActions returns the allowed and the denied requests in an audit log.
func readAuditedActions(t *testing.T, path string) (done map[serviceAccountRequest]bool, refused map[serviceAccountRequest]string) {
	t.Helper()
	f, err := os.Open(path)
	failOnError(t, err)
	defer f.Close()
	done, refused = map[serviceAccountRequest]bool{}, map[serviceAccountRequest]string{}
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var e struct {
			Verb      string
			User      struct{ Username string }
			ObjectRef *struct{ Resource, Namespace, Name, APIGroup, Subresource string }
			Response  struct {
				Code    int
				Message string
			} `json:"responseStatus"`
		}
		failOnError(t, json.Unmarshal(lines.Bytes(), &e))
		if e.ObjectRef == nil { // discovery, which every account may use
			continue
		}
		o := e.ObjectRef
		d := serviceAccountRequest{
			account: e.User.Username[strings.LastIndex(e.User.Username, ":")+1:], group: o.APIGroup, resourceAndSubresource: o.Resource, verb: e.Verb,
			onlyInGantryNamespace: o.Namespace == names.DefaultNamespace, objectName: o.Name,
		}
		if o.Subresource != "" {
			d.resourceAndSubresource += "/" + o.Subresource
		}
		switch {
		case e.Response.Code != http.StatusForbidden:
			done[d] = true
		case !isRefusedByPolicy(refused[d]):
			refused[d] = e.Response.Message
		}
	}
	failOnError(t, lines.Err())
	if len(done) == 0 {
		t.Error("the audit log has no request of a service account: this test looks in the wrong place")
	}
	return done, refused
}

// isRefusedByPolicy reports whether an error of the API server is that of a policy.
func isRefusedByPolicy(message string) bool {
	return strings.Contains(message, "ValidatingAdmissionPolicy")
}

// readRightsOfOverlays returns the rights that the overlays grant to the accounts of the programs.
func readRightsOfOverlays(t *testing.T) []serviceAccountRight {
	t.Helper()
	var all []serviceAccountRight
	for overlay := range packages.EquivalentHelmValuesByKustomizeOverlay {
		text, err := packages.RenderKustomize(t.Context(), overlay)
		failOnError(t, err)
		for _, right := range readGrantedRights(t, text) {
			if !slices.Contains(all, right) {
				all = append(all, right)
			}
		}
	}
	return all
}

// readGrantedRights returns the rights that manifests grant to accounts of Gantry's namespace.
func readGrantedRights(t *testing.T, manifests string) []serviceAccountRight {
	t.Helper()
	objects, err := packages.SplitObjects(manifests)
	failOnError(t, err)
	rules := map[string][]rbacv1.PolicyRule{} // by kind and name of the role
	for _, o := range objects {
		var role rbacv1.ClusterRole // a Role has the same fields
		if k := o.GetKind(); k == "ClusterRole" || k == "Role" {
			failOnError(t, runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, &role))
			rules[k+role.Name] = role.Rules
		}
	}
	var out []serviceAccountRight
	for _, o := range objects {
		if k := o.GetKind(); k != "ClusterRoleBinding" && k != "RoleBinding" {
			continue
		}
		var b rbacv1.RoleBinding
		failOnError(t, runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, &b))
		for _, r := range rules[b.RoleRef.Kind+b.RoleRef.Name] {
			for _, subject := range b.Subjects {
				// A Prometheus has its account elsewhere.
				if subject.Namespace == names.DefaultNamespace {
					out = append(out, rightsGrantedByRule(r, subject.Name, b.Kind == "RoleBinding")...)
				}
			}
		}
	}
	if len(out) == 0 {
		t.Error("the manifests grant no right: this test looks in the wrong place")
	}
	return out
}

func rightsGrantedByRule(r rbacv1.PolicyRule, account string, inside bool) []serviceAccountRight {
	var out []serviceAccountRight
	for _, group := range r.APIGroups {
		for _, resource := range r.Resources {
			for _, verb := range r.Verbs {
				right := serviceAccountRequest{account: account, onlyInGantryNamespace: inside, group: group, resourceAndSubresource: resource, verb: verb}
				out = append(out, serviceAccountRight{right, strings.Join(r.ResourceNames, ",")})
			}
		}
	}
	return out
}
