package migrate

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/types"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/internal/snapshot"
)

// serviceSummary says what a move means for the Services.
type serviceSummary struct {
	served, layer2, bgp int
	// withoutPool are those whose addresses no pool has, singleHolder those with one address, for
	// which one node answers.
	withoutPool, singleHolder []string
	// withSeveralAddresses are those with more addresses of a family than Gantry gives on its own.
	withSeveralAddresses []string
	otherClass           int
}

// summarizeServices looks up the addresses of the Services in the pools.
func (f *Findings) summarizeServices() (out serviceSummary) {
	parsed, _ := f.readAsGantry()
	for _, s := range f.Services {
		if s.Class != f.LoadBalancerClass {
			out.otherClass++
			continue
		}
		if len(s.Addresses) == 0 {
			continue
		}
		out.served++
		isLayer2, isBGP, hasPool := false, false, false
		for _, text := range s.Addresses {
			if p := findPool(parsed, text); p != nil {
				hasPool = true
				isLayer2 = isLayer2 || slices.ContainsFunc(parsed.L2Advertisements, func(a *snapshot.L2Advertisement) bool { return slices.Contains(a.Pools, p.Name) })
				isBGP = isBGP || slices.ContainsFunc(parsed.BGPAdvertisements, func(a *snapshot.BGPAdvertisement) bool { return slices.Contains(a.Pools, p.Name) })
			}
		}
		if n := s.countAddressesOfLargerFamily(); n > 1 && s.annotations[names.AnnotationAddressesPerFamily] == "" {
			out.withSeveralAddresses = append(out.withSeveralAddresses, fmt.Sprintf("kubectl -n %s annotate service %s %s=%d", s.Key.Namespace, s.Key.Name, names.AnnotationAddressesPerFamily, n))
		}
		if !hasPool {
			out.withoutPool = append(out.withoutPool, s.Key.String())
		}
		if isLayer2 {
			out.layer2++
		}
		if isBGP {
			out.bgp++
		}
		if isLayer2 && !isBGP && len(s.Addresses) == 1 {
			out.singleHolder = append(out.singleHolder, s.Key.String())
		}
	}
	return out
}

// countAddressesOfLargerFamily counts the addresses of the family of which the Service has more.
func (s *LoadBalancerService) countAddressesOfLargerFamily() int {
	ipv6 := 0
	for _, a := range s.Addresses {
		if strings.Contains(a, ":") {
			ipv6++
		}
	}
	return max(ipv6, len(s.Addresses)-ipv6)
}

// findPool returns the pool that has an address; nil if none does.
func findPool(parsed *snapshot.Snapshot, text string) *snapshot.Pool {
	a, err := netip.ParseAddr(text)
	if err != nil {
		return nil
	}
	for _, p := range parsed.Pools {
		if p.CoversAddress(a) {
			return p
		}
	}
	return nil
}

// joinKeys joins the names of objects.
func joinKeys(all []types.NamespacedName) string {
	var out []string
	for _, key := range all {
		out = append(out, key.String())
	}
	return strings.Join(out, ", ")
}

// maxNamedServices bounds how many Services a line names.
const maxNamedServices = 5

// joinFirst joins the first elements, and says how many more there are.
func joinFirst(all []string) string {
	if len(all) <= maxNamedServices {
		return strings.Join(all, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(all[:maxNamedServices], ", "), len(all)-maxNamedServices)
}
