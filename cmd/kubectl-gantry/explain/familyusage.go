package explain

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/internal/ipfamily"
)

// familyUsage is how many addresses of one family a pool has in use and free.
type familyUsage struct {
	family              ipfamily.Family
	assigned, available int64
}

func (u familyUsage) total() int64 { return addSaturating(u.assigned, u.available) }

func (u familyUsage) isFull() bool { return u.assigned > 0 && u.available == 0 }

// usageOfBothFamilies returns the use of IPv4 and of IPv6, also of one that a pool does not have.
func usageOfBothFamilies(s *v1beta1.IPAddressPoolStatus) []familyUsage {
	return []familyUsage{{ipfamily.IPv4, s.AssignedIPv4, s.AvailableIPv4}, {ipfamily.IPv6, s.AssignedIPv6, s.AvailableIPv6}}
}

// usageOfEachFamily returns the use of the families that a pool has. A pool without addresses has
// none.
func usageOfEachFamily(s *v1beta1.IPAddressPoolStatus) []familyUsage {
	return slices.DeleteFunc(usageOfBothFamilies(s), func(u familyUsage) bool { return u.total() == 0 })
}

// fullFamilies returns the families of a pool all of whose addresses are in use.
func fullFamilies(s *v1beta1.IPAddressPoolStatus) []familyUsage {
	return slices.DeleteFunc(usageOfBothFamilies(s), func(u familyUsage) bool { return !u.isFull() })
}

// describePoolUse says how many addresses are in use and free: of each family if there are two.
func describePoolUse(s *v1beta1.IPAddressPoolStatus) string {
	all := usageOfEachFamily(s)
	if len(all) < 2 {
		return fmt.Sprintf("%s in use, %d free", formatCount(int(addSaturating(s.AssignedIPv4, s.AssignedIPv6)), "address"), addSaturating(s.AvailableIPv4, s.AvailableIPv6))
	}
	var out []string
	for _, u := range all {
		out = append(out, fmt.Sprintf("%s in use, %d free", formatCount(int(u.assigned), u.family.String()+" address"), u.available))
	}
	return strings.Join(out, "; ")
}

// describeFullFamily says that a pool has no more addresses of a family: of any, if it has only
// one.
func describeFullFamily(s *v1beta1.IPAddressPoolStatus, u familyUsage) string {
	if len(usageOfEachFamily(s)) < 2 {
		return "it is full"
	}
	return fmt.Sprintf("it is full for %s", u.family)
}

// fullestFamily returns the family of a pool of which the largest part is in use.
func fullestFamily(s *v1beta1.IPAddressPoolStatus) familyUsage {
	var fullest familyUsage
	part := -1.0
	for _, u := range usageOfEachFamily(s) {
		if own := float64(u.assigned) / (float64(u.assigned) + float64(u.available)); own > part {
			fullest, part = u, own
		}
	}
	return fullest
}

// addSaturating adds numbers that are not negative. The controller counts at most MaxInt64.
func addSaturating(numbers ...int64) int64 {
	sum := int64(0)
	for _, n := range numbers {
		if n > math.MaxInt64-sum {
			return math.MaxInt64
		}
		sum += n
	}
	return sum
}
