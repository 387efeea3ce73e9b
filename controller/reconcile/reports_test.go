package reconcile

import (
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
)

// reported is a node's report about a Service, with the claims of foreign hosts.
func reported(conflicts ...v1beta1.AddressConflict) v1beta1.ServiceL2Status {
	return v1beta1.ServiceL2Status{Status: v1beta1.ServiceL2StatusStatus{Gantry: &v1beta1.ServiceL2StatusGantry{Conflicts: conflicts}}}
}

func claimed(address, mac string, second int64) v1beta1.AddressConflict {
	return v1beta1.AddressConflict{Address: address, MAC: mac, Since: metav1.NewTime(time.Unix(second, 0))}
}

// The condition tells of the foreign hosts that the speakers report, and of nothing that changes without need.
func TestWhatReportsTell(t *testing.T) {
	peers := v1beta1.ServiceBGPStatus{Status: v1beta1.ServiceBGPStatusStatus{Peers: []string{"router"}}}
	for name, tt := range map[string]struct {
		reports reports
		reason  names.Reason
		text    string
	}{
		"layer 2": {reports{l2: []v1beta1.ServiceL2Status{reported()}}, names.ReasonAnnounced, "announced by layer 2"},
		"two nodes, an older speaker's among them": {
			reports{l2: []v1beta1.ServiceL2Status{reported(), {}}}, names.ReasonAnnounced, "announced by layer 2"},
		"both protocols": {
			reports{l2: []v1beta1.ServiceL2Status{reported()}, bgp: []v1beta1.ServiceBGPStatus{peers}}, names.ReasonAnnounced, "announced by layer 2 and BGP"},
		"a foreign host": {
			reports{l2: []v1beta1.ServiceL2Status{reported(claimed("192.168.0.201", "02:00:00:00:00:99", 7))}},
			names.ReasonForeignClaim, "announced by layer 2, and a host that does not hold it claims 192.168.0.201 (02:00:00:00:00:99): "},
		"of many the one that claimed first, for each address, whoever reports it": {
			reports{l2: []v1beta1.ServiceL2Status{
				reported(claimed("fd00::1", "02:00:00:00:00:01", 9), claimed("fd00::1", "02:00:00:00:00:02", 8)),
				reported(claimed("192.168.0.201", "02:00:00:00:00:04", 7), claimed("192.168.0.201", "02:00:00:00:00:03", 7)),
			}},
			names.ReasonForeignClaim, "claims 192.168.0.201 (02:00:00:00:00:03), and fd00::1 (02:00:00:00:00:02): "},
	} {
		t.Run(name, func(t *testing.T) {
			reason, text := tt.reports.tell()
			if reason != tt.reason || !strings.Contains(text, tt.text) || (reason == names.ReasonAnnounced && text != tt.text) {
				t.Errorf("told: %s, %q; want %s, %q", reason, text, tt.reason, tt.text)
			}
		})
	}
}
