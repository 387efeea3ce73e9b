package migrate

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/gantry-lb/gantry/api/names"
)

// Step is what to do next, with the commands for this cluster.
type Step struct {
	Text     string   `json:"text"`
	Commands []string `json:"commands,omitempty"`
}

// The port for the gossip of Gantry while both products run, and that of its metrics.
const (
	gossipPortBesideMetalLB = 7947
	metricsPortOfSpeaker    = 7473
	otherMetricsPort        = 9473
)

// ListSteps returns the steps from MetalLB to Gantry that are left for the cluster, in order.
func (f *Findings) ListSteps() (out []Step) {
	controller, speaker := f.findWorkload(names.ComponentController), f.findWorkload(names.ComponentSpeaker)
	if f.Way == WayOperator {
		out = append(out, Step{Text: "stop MetalLB's operator first: it would undo the next steps. With the Operator Lifecycle Manager, delete the Subscription and the ClusterServiceVersion of the operator, which keeps the CRDs and their objects. Do not delete the MetalLB object before"})
	}
	if controller != nil && controller.Replicas > 0 {
		out = append(out, Step{"stop MetalLB's controller. The Services keep their addresses, and its speakers go on announcing them; new Services wait for the next steps", []string{
			fmt.Sprintf("kubectl -n %s scale deployment/%s --replicas=0", controller.Key.Namespace, controller.Key.Name),
			fmt.Sprintf("kubectl -n %s wait --for=delete pod -l %s --timeout=1m", controller.Key.Namespace, controller.formatSelector()),
		}})
	}
	if len(f.ListActions()) > 0 || controller != nil && controller.Replicas > 0 && f.willHaveActions() {
		command := "kubectl gantry migrate"
		if f.HelmReleaseOfGantry != "" {
			command += " --helm-release " + f.HelmReleaseOfGantry
		}
		out = append(out, Step{"prepare the objects that stay. The command shows each change, and asks", []string{command + f.formatNamespaceFlag()}})
	}
	if !f.hasGantry() {
		out = append(out, f.installationStep()...)
	}
	if f.Way != WayNone {
		out = append(out, Step{"wait until the programs of Gantry run. Its speakers leave each address to the speaker of MetalLB that answers for it", []string{
			fmt.Sprintf("kubectl -n %s rollout status deployment/gantry-controller", f.GantryNamespace),
			fmt.Sprintf("kubectl -n %s rollout status daemonset/gantry-speaker", f.GantryNamespace),
		}})
	}
	if speaker != nil {
		text := "stop MetalLB's speakers. Those of Gantry take the addresses: clients see at most one failover"
		if f.summarizeServices().bgp > 0 && f.BGPMode != bgpModeFRRK8s {
			text += ". The routes by BGP are gone until Gantry's sessions are up, unless the router has graceful restart or you stop the speakers node by node (docs/from-metallb.md)"
		}
		out = append(out, Step{text, []string{
			fmt.Sprintf("kubectl -n %s delete daemonset %s", speaker.Key.Namespace, speaker.Key.Name),
		}})
	}
	out = append(out, f.stopFRRK8sStep()...)
	if f.Way != WayNone {
		out = append(out, Step{Text: "see whether all is well", Commands: []string{"kubectl gantry status" + f.formatNamespaceFlag()}}, f.removalStep())
	}
	return out
}

// willHaveActions reports whether a stopped controller leaves something to remove.
func (f *Findings) willHaveActions() bool {
	return len(f.Webhooks) > 0 || slices.ContainsFunc(f.CRDs, func(c CRD) bool { return c.ConversionService.Name != "" })
}

// hasGantry reports whether Gantry is installed.
func (f *Findings) hasGantry() bool { return len(f.OwnWorkloads) > 0 }

func (f *Findings) formatNamespaceFlag() string {
	if f.GantryNamespace == names.DefaultNamespace {
		return ""
	}
	return " --gantry-namespace " + f.GantryNamespace
}

// installationStep installs Gantry beside MetalLB, in the way in which MetalLB was installed.
func (f *Findings) installationStep() []Step {
	var ports []string
	if speaker := f.findWorkload(names.ComponentSpeaker); speaker != nil {
		ports = append(ports, fmt.Sprintf("speaker.gossip.port=%d", gossipPortBesideMetalLB))
		if slices.Contains(speaker.HostPorts, metricsPortOfSpeaker) {
			ports = append(ports, fmt.Sprintf("speaker.ports.metrics=%d", otherMetricsPort))
		}
	}
	if f.Way != WayHelm {
		return []Step{{"install Gantry beside MetalLB with your overlay of config/default. While MetalLB's speakers run, set the environment variable GANTRY_GOSSIP_BIND_PORT of the speakers to 7947 (docs/from-metallb.md has the overlay)" + f.describePortClash(), []string{"kubectl apply -k ."}}}
	}
	install := fmt.Sprintf("helm install %s charts/gantry --namespace %s --values gantry-values.yaml --set image.repository=registry.example/gantry", f.releaseNameOfGantry(), f.GantryNamespace)
	for _, p := range ports {
		install += " --set " + p
	}
	if f.HelmReleaseOfGantry == "" {
		install += " --take-ownership"
	}
	install += " --force-conflicts"
	return []Step{
		{"translate the values of the release", []string{fmt.Sprintf("helm get values %s --namespace %s --output yaml | kubectl gantry migrate --values - > gantry-values.yaml", f.Release.Key.Name, f.Release.Key.Namespace)}},
		{"install Gantry beside MetalLB, with another port for its gossip. Helm 4 needs --force-conflicts, because another program wrote the CRDs. Helm 3 does not have this flag: leave it out", []string{install}},
	}
}

func (f *Findings) releaseNameOfGantry() string {
	if f.HelmReleaseOfGantry != "" {
		return f.HelmReleaseOfGantry
	}
	return names.AppName
}

// describePortClash says that MetalLB uses the port of our metrics.
func (f *Findings) describePortClash() string {
	if speaker := f.findWorkload(names.ComponentSpeaker); speaker != nil && slices.Contains(speaker.HostPorts, metricsPortOfSpeaker) {
		return fmt.Sprintf(". MetalLB's speakers also use port %d: set GANTRY_METRICS_BIND_ADDRESS to :%d", metricsPortOfSpeaker, otherMetricsPort)
	}
	return ""
}

// stopFRRK8sStep ends the BGP sessions that FRR-K8s has for MetalLB. FRR-K8s stays if users have
// FRRConfigurations of their own. There is no step if nothing of FRR-K8s is found.
func (f *Findings) stopFRRK8sStep() []Step {
	if f.BGPMode != bgpModeFRRK8s && len(f.MetalLBFRRConfigurations) == 0 {
		return nil
	}
	var commands []string
	text := "end the BGP sessions that FRR-K8s still has for MetalLB: the router accepts those of Gantry afterwards. FRR-K8s stays for your own FRRConfigurations"
	if len(f.FRRConfigurations) == 0 {
		text = "stop FRR-K8s, which nobody but MetalLB uses, and which still has its BGP sessions: the router accepts those of Gantry afterwards"
		for i := range f.FRRK8s {
			w := &f.FRRK8s[i]
			commands = append(commands, fmt.Sprintf("kubectl -n %s delete %s %s", w.Key.Namespace, strings.ToLower(w.Kind.Kind), w.Key.Name))
		}
		for _, name := range f.FRRK8sWebhooks {
			commands = append(commands, "kubectl delete validatingwebhookconfiguration "+name)
		}
	}
	namesByNamespace := map[string][]string{}
	for _, key := range f.MetalLBFRRConfigurations {
		namesByNamespace[key.Namespace] = append(namesByNamespace[key.Namespace], key.Name)
	}
	for _, namespace := range slices.Sorted(maps.Keys(namesByNamespace)) {
		commands = append(commands, fmt.Sprintf("kubectl -n %s delete %s %s", namespace, frrConfigKind, strings.Join(namesByNamespace[namespace], " ")))
	}
	if len(commands) == 0 {
		return nil
	}
	return []Step{{text, commands}}
}

// removalStep removes what is left of MetalLB, without what holds configuration.
func (f *Findings) removalStep() Step {
	if f.Way == WayHelm {
		of := "-l app.kubernetes.io/instance=" + f.Release.Key.Name
		return Step{"remove the rest of MetalLB. Do not run helm uninstall before: that of Helm 3 deletes the CRDs, and all pools with them. Without its Secrets, Helm does not know the release any more", append([]string{
			fmt.Sprintf("kubectl -n %s delete secret -l owner=helm,name=%s", f.Release.Key.Namespace, f.Release.Key.Name),
			fmt.Sprintf("kubectl -n %s delete deployment,daemonset,service,configmap,secret,serviceaccount,role,rolebinding,networkpolicy %s,app.kubernetes.io/name=metallb", f.Release.Key.Namespace, of),
			fmt.Sprintf("kubectl delete clusterrole,clusterrolebinding %s,app.kubernetes.io/name=metallb", of),
		}, f.removeRestOfFRRK8s(of)...)}
	}
	return Step{"remove the rest of MetalLB. Do not run kubectl delete -f with its manifest: that deletes the CRDs, all pools with them, and the namespace", []string{
		fmt.Sprintf("kubectl -n %s delete deployment,daemonset,service,serviceaccount,role,rolebinding -l app=metallb", f.Namespace),
		fmt.Sprintf("kubectl -n %s delete service/metallb-webhook-service service/webhook-service configmap/%s secret/metallb-webhook-cert secret/webhook-server-cert secret/memberlist secret/metallb-memberlist --ignore-not-found", f.Namespace, excludeListOfMetalLB),
		"kubectl delete clusterrole,clusterrolebinding -l app=metallb",
	}}
}

// removeRestOfFRRK8s removes what MetalLB's chart installed of FRR-K8s, if FRR-K8s is stopped.
func (f *Findings) removeRestOfFRRK8s(ofRelease string) []string {
	if f.BGPMode != bgpModeFRRK8s || len(f.FRRConfigurations) > 0 {
		return nil
	}
	return []string{
		fmt.Sprintf("kubectl -n %s delete service,configmap,secret,serviceaccount,role,rolebinding %s,app.kubernetes.io/name=%s", f.Release.Key.Namespace, ofRelease, frrK8sName),
		fmt.Sprintf("kubectl delete clusterrole,clusterrolebinding %s,app.kubernetes.io/name=%s", ofRelease, frrK8sName),
	}
}

// formatSelector selects the Pods of a program of MetalLB.
func (w *Workload) formatSelector() string {
	if w.labels[manifestNameLabel] == metalLBName {
		return manifestNameLabel + "=" + metalLBName + "," + manifestComponentLabel + "=" + w.Component
	}
	return strings.Join([]string{names.LabelAppName + "=" + metalLBName, names.LabelComponent + "=" + w.Component}, ",")
}
