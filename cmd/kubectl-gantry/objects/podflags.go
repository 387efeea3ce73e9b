package objects

import (
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// ReadFlagOfPodSpec returns the value of a flag of a program in a Pod: from its arguments, or from
// the environment variable of the same name.
func ReadFlagOfPodSpec(p *corev1.PodSpec, flag string) string {
	variable := "GANTRY_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
	for i := range p.Containers {
		c := &p.Containers[i]
		all := slices.Concat(c.Command, c.Args)
		for j, a := range all {
			if value, ok := strings.CutPrefix(a, "--"+flag+"="); ok {
				return value
			}
			if a == "--"+flag && j+1 < len(all) {
				return all[j+1]
			}
		}
		for _, v := range c.Env {
			if v.Name == variable {
				return v.Value
			}
		}
	}
	return ""
}

// IsSwitchOfPodSpecOn reports whether a flag that needs no value is set.
func IsSwitchOfPodSpecOn(p *corev1.PodSpec, flag string) bool {
	for i := range p.Containers {
		if c := &p.Containers[i]; slices.Contains(c.Command, "--"+flag) || slices.Contains(c.Args, "--"+flag) {
			return true
		}
	}
	isOn, err := strconv.ParseBool(ReadFlagOfPodSpec(p, flag))
	return err == nil && isOn
}
