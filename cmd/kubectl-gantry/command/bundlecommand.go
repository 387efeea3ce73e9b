package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	authorizationv1 "k8s.io/api/authorization/v1"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/bundle"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/explain"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/objects"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/portforward"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/report"
	"github.com/gantry-lb/gantry/internal/configuration"
	"github.com/gantry-lb/gantry/internal/rib"
)

// bundleFileFlagName is the flag of all commands that read.
const bundleFileFlagName = "from-bundle"

// errBundleIsNoCluster says that a command needs a cluster.
var errBundleIsNoCluster = errors.New("this command needs a cluster: leave --" + bundleFileFlagName + " out")

// newSupportBundleCommand returns the command support-bundle.
func (p *program) newSupportBundleCommand() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use: "support-bundle", Short: "write a file with what the other commands read, without secrets", Args: cobra.NoArgs,
		Long: "support-bundle writes one archive with the objects that the other commands read. With --from-bundle FILE, each of them then answers\n" +
			"as it did in the cluster. The archive has no Secrets, passwords or tokens, and of annotations only those for Gantry. It has the names\n" +
			"and addresses of nodes and Services.",
		RunE: func(c *cobra.Command, _ []string) error { return p.writeSupportBundle(c.Context(), file) },
	}
	c.Flags().StringVarP(&file, "file", "f", "", "the file to write, which must not exist yet; - for the standard output (default gantry-support-bundle-TIME.tar.gz)")
	return c
}

// writeSupportBundle collects the objects and writes the archive.
func (p *program) writeSupportBundle(ctx context.Context, file string) error {
	connected, err := p.newConnection()
	if err != nil {
		return err
	}
	namespace, _, err := p.kubeconfigFlags.ToRawKubeConfigLoader().Namespace()
	if err != nil {
		return fmt.Errorf("reading the kubeconfig: %w", err)
	}
	p.showProgress("reading all objects")
	b, err := bundle.Collect(ctx, bundle.Collection{
		API: connected.api, GantryNamespace: p.gantryNamespace, UserNamespace: namespace, Now: connected.clock.now, FastestAPIAnswerDelay: connected.clock.shortestResponseDelay,
		RightsOfProgram: func(component string) []authorizationv1.ResourceAttributes {
			return explain.RightsOfProgram(component, p.gantryNamespace)
		},
		FetchRoutePage: func(ctx context.Context, pod string) ([]byte, error) {
			return portforward.FetchPodPage(ctx, connected.restConfig, portforward.PodPageLocation{Namespace: p.gantryNamespace, Pod: pod, Port: speakerRoutesPort, Path: rib.RoutesPagePath})
		},
	})
	if err != nil {
		return err
	}
	if file == "" {
		file = "gantry-support-bundle-" + b.Now().UTC().Format("20060102-150405") + ".tar.gz"
	}
	if err := p.writeBundleFile(b, file); err != nil {
		return err
	}
	lacks := b.DescribeLacks()
	if len(lacks) > 0 {
		p.keepWorstResult(report.ResultUnknown)
		fmt.Fprintf(p.ErrOut, "The bundle lacks: %s\n", strings.Join(lacks, "; "))
	}
	if file != "-" {
		fmt.Fprintf(p.Out, "%s has %d objects. Read it with: kubectl gantry --%s %s status\n", file, b.CountObjects(), bundleFileFlagName, file)
	}
	return nil
}

// writeBundleFile writes the archive to a new file, which only the user may read.
func (p *program) writeBundleFile(b *bundle.Bundle, file string) error {
	scheme, err := configuration.NewScheme()
	if err != nil {
		return err
	}
	if file == "-" {
		return b.WriteArchive(p.Out, scheme)
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("writing the bundle: %w", err)
	}
	if err := errors.Join(b.WriteArchive(f, scheme), f.Close()); err != nil {
		return errors.Join(err, os.Remove(file))
	}
	return nil
}

// readBundleFile reads the file of the flag.
func (p *program) readBundleFile() (*bundle.Bundle, error) {
	scheme, err := configuration.NewScheme()
	if err != nil {
		return nil, err
	}
	var from io.ReadCloser
	if from, err = os.Open(p.bundleFile); err != nil {
		return nil, fmt.Errorf("reading the bundle: %w", err)
	}
	defer from.Close()
	return bundle.ReadArchive(from, scheme)
}

// newExplainerOfBundle answers from the file of the flag, at the time of the bundle.
func (p *program) newExplainerOfBundle() (*explain.Explainer, error) {
	b, err := p.readBundleFile()
	if err != nil {
		return nil, err
	}
	scheme, err := configuration.NewScheme()
	if err != nil {
		return nil, err
	}
	api := bundle.NewClient(b, scheme, configuration.NewOfflineRESTMapper(scheme, objects.PluginOnlyAPIGroups...))
	namespace := b.Manifest.GantryNamespace
	if p.gantryNamespace != names.DefaultNamespace {
		namespace = p.gantryNamespace
	}
	o := explain.ExplainerOptions{ObjectReader: objects.NewReader(api, explain.LabelsFuncByIndex), GantryNamespace: namespace, Now: b.Now, FastestAPIAnswerDelay: b.FastestAPIAnswerDelay, ShowProgress: p.showProgress}
	if p.readsFromSpeakers {
		o.FetchSpeakerPage = func(_ context.Context, pod, _ string) ([]byte, error) { return b.RoutePage(pod) }
	}
	return explain.NewExplainer(o), nil
}
