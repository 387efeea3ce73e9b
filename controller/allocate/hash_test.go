package allocate

import (
	"testing"

	"github.com/gantry-lb/gantry/internal/view"
)

// TestServiceHashesNeverChange protects the addresses of users: a Service that is created again
// gets its old address back by the hash of its name, in every version.
func TestServiceHashesNeverChange(t *testing.T) {
	const want = 3266631107982325606
	if got := stableHashOfServiceName(view.ObjectKey{Namespace: "default", Name: "web"}); got != want {
		t.Errorf("the hash of default/web is %d, want %d", got, uint64(want))
	}
}
