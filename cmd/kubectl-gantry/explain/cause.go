package explain

import (
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/snapshot"
)

// cause is why something fails, and what has to be changed to mend it.
type cause struct {
	names.Explanation
	target repairTarget
}

// repairTarget is the object that a repair changes. It is empty if the Reason alone says what to
// do.
type repairTarget struct {
	kind string
	key  client.ObjectKey
	// field is what to change in the object; it may be empty.
	field string
	// remedy is set if another change than an edit mends it.
	remedy remedy
}

// remedy is a change that is no edit of the object.
type remedy string

const (
	// remedyAllowPods lets the namespace of Gantry admit its Pods.
	remedyAllowPods remedy = "AllowPods"
	// remedyApplyRBAC gives the programs of Gantry their rights again.
	remedyApplyRBAC remedy = "ApplyRBAC"
	// remedyUninstall removes the product to which a workload belongs.
	remedyUninstall remedy = "Uninstall"
	// remedyEnableBGP lets the programs of Gantry read the kinds of BGP.
	remedyEnableBGP remedy = "EnableBGP"
)

// newCauseOfWorkload returns a cause that ends if the product of the workload is uninstalled.
func newCauseOfWorkload(w *productWorkload, reason names.Reason, format string, args ...any) cause {
	return cause{names.NewExplanation(reason, format, args...), repairTarget{kind: w.kind, key: w.key, remedy: remedyUninstall}}
}

// targetOfProblem returns the field of the configuration object that has the fault.
func targetOfProblem(p *snapshot.Problem) repairTarget {
	return repairTarget{kind: p.Object.Kind, key: client.ObjectKey{Namespace: p.Object.Namespace, Name: p.Object.Name}, field: p.Field}
}
