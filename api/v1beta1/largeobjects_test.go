package v1beta1_test

import (
	"fmt"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/api/v1beta1"
)

// Manifests from elsewhere have long lists, since the API that they were written for does not limit
// them. The API server must neither refuse them nor spend too much on the rules.
func testLargeObjectsAreAccepted(t *testing.T, c client.Client) {
	pool := &v1beta1.IPAddressPool{}
	for i := range 10_000 {
		form := []string{"10.%d.%d.%d/32", "10.%d.%d.%d", "fd00:1234:5678:9abc:def0:%x:%x:%x - fd00:1234:5678:9abc:def0:%[1]x:%[2]x:%[3]x"}[i%3]
		pool.Spec.Addresses = append(pool.Spec.Addresses, fmt.Sprintf(form, i%3, i/256, i%256))
	}
	community := &v1beta1.Community{}
	for i := range 1000 {
		community.Spec.Communities = append(community.Spec.Communities, v1beta1.CommunityAlias{
			Name: fmt.Sprintf("%s%d", strings.Repeat("alias-", 40), i), Value: fmt.Sprintf("large:4294967295:4294967295:%d", 4_000_000_000+i),
		})
	}
	ad := &v1beta1.BGPAdvertisement{}
	for i := range 1000 {
		s := metav1.LabelSelector{MatchLabels: map[string]string{"app": fmt.Sprint("app", i)}}
		ad.Spec.ServiceSelectors, ad.Spec.NodeSelectors = append(ad.Spec.ServiceSelectors, s), append(ad.Spec.NodeSelectors, s)
		if i < 500 {
			ad.Spec.Communities = append(ad.Spec.Communities, fmt.Sprintf("large:4294967295:4294967295:%d", 4_000_000_000+i))
		}
	}
	for kind, o := range map[string]client.Object{"IPAddressPool": pool, "Community": community, "BGPAdvertisement": ad} {
		t.Run(kind, func(t *testing.T) {
			o.SetNamespace(names.DefaultNamespace)
			o.SetName("created")
			if err := c.Create(t.Context(), o.DeepCopyObject().(client.Object)); err != nil {
				t.Errorf("creating it: %.500v", err)
			}
			content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
			if err != nil {
				t.Fatal(err)
			}
			u := &unstructured.Unstructured{Object: content}
			u.SetGroupVersionKind(schema.GroupVersionKind{Group: "metallb.io", Version: "v1beta1", Kind: kind})
			unstructured.RemoveNestedField(u.Object, "status")
			unstructured.RemoveNestedField(u.Object, "metadata", "creationTimestamp")
			// a new object, and one that exists
			for _, name := range []string{"applied", "created"} {
				applied := u.DeepCopy() // which gets the answer
				applied.SetName(name)
				if err := c.Apply(t.Context(), client.ApplyConfigurationFromUnstructured(applied), client.FieldOwner("test"), client.ForceOwnership); err != nil {
					t.Errorf("applying %s: %.500v", name, err)
				}
			}
		})
	}
}
