package migrate

import (
	"fmt"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/chartvalues"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/report"
)

// CheckReport is the answer of kubectl gantry migrate --check.
type CheckReport struct {
	// Answer is one sentence.
	Answer string        `json:"answer"`
	Result report.Result `json:"result"`
	// Found says what is in the cluster.
	Found []string `json:"found"`
	// Same says what stays as it is, Different what Gantry does in another way, and
	// WithoutCounterpart what it does not do.
	Same               []string `json:"same"`
	Different          []string `json:"different"`
	WithoutCounterpart []string `json:"withoutCounterpart"`
	Steps              []Step   `json:"steps"`
	// MissingRights are rights that the user lacks, so that something is unknown.
	MissingRights []string `json:"missingRights,omitempty"`
}

// BuildCheckReport says what the findings mean.
func BuildCheckReport(f *Findings) *CheckReport {
	r := &CheckReport{
		Result: report.ResultWell, Found: f.describeFound(), Same: f.describeSame(), Different: f.listDifferences(),
		WithoutCounterpart: f.listWithoutCounterpart(), Steps: f.ListSteps(), MissingRights: f.MissingRights,
	}
	switch {
	case f.Way == WayNone && len(f.CRDs) == 0:
		r.Answer = "there is nothing of MetalLB in the cluster"
	case f.Way == WayNone:
		r.Answer = "no program of MetalLB is in the cluster, and its CRDs are there"
	default:
		r.Answer = fmt.Sprintf("MetalLB %s can be replaced in place, in %d steps", f.Version, len(r.Steps))
	}
	switch {
	case len(r.WithoutCounterpart)+len(f.Unreadable) > 0:
		r.Result = report.ResultNotWell
		r.Answer += fmt.Sprintf("; %d things have no counterpart or need a decision", len(r.WithoutCounterpart)+len(f.Unreadable))
	case len(f.MissingRights) > 0:
		r.Result = report.ResultUnknown
	}
	return r
}

// describeFound says what is in the cluster.
func (f *Findings) describeFound() (out []string) {
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	switch f.Way {
	case WayHelm:
		add("MetalLB %s in namespace %s, by Helm: release %s, chart %s", f.Version, f.Namespace, f.Release.Key, f.describeChartVersion())
	case WayManifests:
		add("MetalLB %s in namespace %s, by manifests", f.Version, f.Namespace)
	case WayOperator:
		add("MetalLB %s in namespace %s, by its operator", f.Version, f.Namespace)
	}
	if f.BGPMode != "" {
		add("its BGP mode is %s", f.BGPMode)
	}
	for i := range f.FRRK8s {
		if w := &f.FRRK8s[i]; w.Kind == daemonSetKind {
			add("FRR-K8s in namespace %s, DaemonSet %s: it has the BGP sessions, also after MetalLB's speakers have stopped", w.Key.Namespace, w.Key.Name)
		}
	}
	if n := len(f.MetalLBFRRConfigurations); n > 0 {
		add("%d frrconfigurations.frrk8s.metallb.io that MetalLB's speakers wrote, one for each node", n)
	}
	if f.LoadBalancerClass != "" {
		add("it serves only Services with loadBalancerClass %s: Gantry needs the same class", f.LoadBalancerClass)
	}
	for _, k := range configurationKinds {
		if n := len(f.Configuration[k]); n > 0 {
			add("%d %s", n, k.Resource)
		}
	}
	for i := range f.Workloads {
		if w := &f.Workloads[i]; len(w.HostPorts) > 0 {
			add("%s %s uses these ports of the nodes: %s", w.Kind.Kind, w.Key.Name, strings.Trim(fmt.Sprint(w.HostPorts), "[]"))
		}
	}
	for i := range f.Webhooks {
		w := &f.Webhooks[i]
		add("webhook %s, for which %s", w.Name, map[bool]string{true: "MetalLB's controller answers", false: "nobody answers"}[w.HasEndpoint])
	}
	for i := range f.CRDs {
		if c := &f.CRDs[i]; c.ConversionService.Name != "" {
			add("CRD %s has a conversion webhook, of Service %s", c.Name, c.ConversionService)
		}
	}
	if releases := f.listReleasesWithCRDs(); len(releases) > 0 {
		add("the CRDs belong to Helm's release %s: helm uninstall of it deletes them, and all pools with them", strings.Join(releases, ", "))
	}
	if f.isExcludeListEdited() {
		add("the list of excluded interfaces is edited: %s", strings.Join(f.ExcludeList, " "))
	}
	out = append(out, f.describeServices()...)
	return slices.Concat(out, f.OtherWriters, f.Unreadable)
}

func (f *Findings) describeChartVersion() string {
	switch {
	case f.Release.ChartVersion != "":
		return f.Release.ChartVersion
	case slices.Contains(f.MissingRights, missingRightText(secretKind, f.Release.Key.Namespace)):
		return "unknown: reading it needs the right to list Secrets in namespace " + f.Release.Key.Namespace
	}
	return "unknown: Helm has no Secret about it"
}

// listReleasesWithCRDs returns the foreign releases of Helm that CRDs belong to.
func (f *Findings) listReleasesWithCRDs() (out []string) {
	for i := range f.CRDs {
		if o := f.CRDs[i].owner; f.isOfForeignRelease(o) {
			out = append(out, o.helmRelease.String())
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// describeServices says how many Services there are, and what needs a look before a move.
func (f *Findings) describeServices() (out []string) {
	s := f.summarizeServices()
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	add("%d Services of type LoadBalancer, of which %d have addresses", len(f.Services), s.served)
	if s.otherClass > 0 {
		add("%d Services are of another class, and not MetalLB's", s.otherClass)
	}
	if len(s.withoutPool) > 0 {
		add("the addresses of %s are in no pool: they stay, and the Services say so in their conditions", joinFirst(s.withoutPool))
	}
	if len(s.singleHolder) > 0 {
		add("%d Services have one address, for which one node answers: their clients see the failover when MetalLB's speakers stop: %s", len(s.singleHolder), joinFirst(s.singleHolder))
	}
	for _, command := range s.withSeveralAddresses {
		add("a Service has several addresses of one family, and would keep only the first: to keep all, run before: %s", command)
	}
	if n := f.countOldAnnotations(); n > 0 {
		add("%d Services have annotations in the older spelling, which Gantry reads too", n)
	}
	return out
}

// describeSame says what stays as it is.
func (f *Findings) describeSame() (out []string) {
	s := f.summarizeServices()
	if s.served > 0 {
		out = append(out, fmt.Sprintf("the addresses of all %d Services", s.served))
	}
	if f.hasPools() {
		out = append(out, "all configuration objects, with their names and API versions, and the annotations of the Services")
	}
	if s.layer2 > 0 {
		out = append(out, fmt.Sprintf("ARP and NDP for %d Services: each address moves at most once, when MetalLB's speakers stop", s.layer2))
	}
	if s.bgp > 0 {
		out = append(out, fmt.Sprintf("the routes to %d Services: each node ends its session with each router once; a router with graceful restart keeps the routes meanwhile", s.bgp))
	}
	return out
}

// translateReleaseValues returns the values of the release that have no counterpart.
func (f *Findings) translateReleaseValues() []chartvalues.TranslatedValue {
	text, err := yaml.Marshal(f.Release.Values)
	if err != nil || len(f.Release.Values) == 0 {
		return nil
	}
	t, err := chartvalues.TranslateValues(text)
	if err != nil {
		return nil
	}
	return t.ValuesWithOutcome(chartvalues.OutcomeNone)
}

// FormatCheckReport writes the answer for people.
func FormatCheckReport(r *CheckReport) string {
	var b strings.Builder
	b.WriteString(r.Answer + "\n")
	for _, part := range []struct {
		title string
		lines []string
	}{{"Found", r.Found}, {"Stays the same", r.Same}, {"Differs, on purpose", r.Different}, {"Has no counterpart", r.WithoutCounterpart}} {
		if len(part.lines) == 0 {
			continue
		}
		b.WriteString("\n" + part.title + ":\n")
		for _, l := range part.lines {
			b.WriteString("  - " + l + "\n")
		}
	}
	if len(r.Steps) > 0 {
		b.WriteString("\nSteps:\n")
	}
	for i, s := range r.Steps {
		fmt.Fprintf(&b, "  %d. %s\n", i+1, s.Text)
		for _, c := range s.Commands {
			b.WriteString("       " + c + "\n")
		}
	}
	if len(r.MissingRights) > 0 {
		fmt.Fprintf(&b, "\nNot seen, because you have no right to: %s\n", strings.Join(r.MissingRights, "; "))
	}
	return b.String()
}
