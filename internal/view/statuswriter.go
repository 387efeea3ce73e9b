package view

import (
	"bytes"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/gantry-lb/gantry/api/names"
)

// OtherStatusWriter returns the entry of managedFields of the other program that last wrote the
// addresses of a Service, and that of Gantry; nil if there is none. The API server records who
// wrote which field. A person with kubectl is no program.
func OtherStatusWriter(s *corev1.Service) (other, own *metav1.ManagedFieldsEntry) {
	for i := range s.ManagedFields {
		f := &s.ManagedFields[i]
		if f.FieldsV1 == nil || f.Time == nil || f.Subresource != "status" {
			continue
		}
		switch written := f.FieldsV1.GetRawBytes(); {
		case bytes.Contains(written, []byte(names.ConditionAddressAssigned)):
			own = f
		case bytes.Contains(written, []byte(`"f:loadBalancer"`)) && !strings.HasPrefix(f.Manager, "kubectl") && (other == nil || other.Time.Before(f.Time)):
			other = f
		}
	}
	return other, own
}

// productByWriter are the programs that are known to write the addresses of Services, by the first
// part of the name that the API server records.
var productByWriter = map[string]string{
	"kube-vip": "kube-vip", "cilium": "Cilium's LB-IPAM", "k3s": "ServiceLB of K3s", "rke2": "ServiceLB of RKE2",
}

// metalLBWriter is the name that the API server records for MetalLB: that of its binary.
const metalLBWriter = "controller"

// IsStatusWriterOfMetalLB reports whether the name is that of MetalLB's program. Its entry remains
// when MetalLB is gone.
func IsStatusWriterOfMetalLB(manager string) bool { return manager == metalLBWriter }

// DescribeStatusWriter names a program by the name that the API server records, and the product
// that it belongs to, if that is known.
func DescribeStatusWriter(manager string) string {
	if manager == metalLBWriter {
		return manager + ", as MetalLB's program is named"
	}
	for first, product := range productByWriter {
		if manager != product && strings.HasPrefix(manager+"-", first+"-") {
			return manager + ", which is " + product
		}
	}
	return manager
}
