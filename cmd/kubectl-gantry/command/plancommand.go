package command

import (
	"context"
	"os"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/explain"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/objects"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/preview"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/report"
)

// editFlags are the flags of the command plan.
type editFlags struct {
	source            preview.ManifestSource
	showsFieldChanges bool
	// plansDeletion plans kubectl delete, not kubectl apply.
	plansDeletion bool
}

// newPreviewCommand returns the command plan.
func (p *program) newPreviewCommand() *cobra.Command {
	f := &editFlags{source: preview.ManifestSource{Input: os.Stdin}}
	c := &cobra.Command{
		Use: "plan -f FILE", Short: "say what an edit would do, before it is applied", Args: cobra.NoArgs,
		Long: "plan says what kubectl apply -f FILE would do, and applies nothing: faults of objects, addresses that would lose their pool,\n" +
			"Services that would get or lose an address, addresses that must move, routes that would change, and reasons that would appear.\n" +
			"The API server checks each object alone, with your rights.\n" +
			"The exit status is 0 if nothing would be harmed, 1 if something would be harmed or refused, and 2 if that could not be told.",
		RunE: func(c *cobra.Command, _ []string) error { return p.printPreviewOfManifests(c.Context(), f) },
	}
	c.Flags().StringSliceVarP(&f.source.Paths, "filename", "f", nil, "files or directories with manifests; - is the standard input")
	c.Flags().BoolVarP(&f.source.IsRecursive, "recursive", "R", false, "read the directories in directories too")
	c.Flags().BoolVar(&f.showsFieldChanges, "diff", false, "also list the fields that would change in the cluster")
	c.Flags().BoolVar(&f.plansDeletion, "delete", false, "plan kubectl delete -f FILE")
	_ = c.MarkFlagRequired("filename")
	return c
}

func (p *program) printPreviewOfManifests(ctx context.Context, f *editFlags) error {
	manifests, err := preview.ReadManifests(f.source)
	if err != nil {
		return err
	}
	connected, err := p.newConnection()
	if err != nil {
		return err
	}
	namespace, _, err := p.kubeconfigFlags.ToRawKubeConfigLoader().Namespace()
	if err != nil {
		return err
	}
	runner := &preview.DryRunner{API: connected.api, GantryNamespace: p.gantryNamespace, UserNamespace: namespace}
	edited, err := dryRunManifests(ctx, runner, f, manifests)
	if err != nil {
		return err
	}
	result, err := preview.PreviewEdit(ctx, p.newExplainerOfConnection(connected), edited)
	if err != nil {
		return err
	}
	return p.printPreview(result, f)
}

// newExplainerOfConnection returns an Explainer that asks no speaker.
func (p *program) newExplainerOfConnection(c *connection) *explain.Explainer {
	return explain.NewExplainer(explain.ExplainerOptions{
		ObjectReader: objects.NewReader(c.api, explain.LabelsFuncByIndex), GantryNamespace: p.gantryNamespace, Now: c.clock.now, ShowProgress: p.showProgress,
	})
}

// dryRunManifests asks the API server about each object.
func dryRunManifests(ctx context.Context, runner *preview.DryRunner, f *editFlags, manifests []*unstructured.Unstructured) ([]preview.EditedObject, error) {
	dryRun := runner.DryRunApply
	if f.plansDeletion {
		dryRun = runner.DryRunDelete
	}
	var out []preview.EditedObject
	for _, m := range manifests {
		edited, err := dryRun(ctx, m)
		if err != nil {
			return nil, err
		}
		if !f.showsFieldChanges {
			edited.Changes = nil
		}
		out = append(out, edited)
	}
	return out, nil
}

// printPreview prints what an edit would do, and keeps its result.
func (p *program) printPreview(result *preview.Preview, f *editFlags) error {
	p.keepWorstResult(result.Result)
	p.answerText.Reset()
	printer, err := p.newPrinter()
	if err != nil {
		return err
	}
	switch scope := preview.WithoutFieldChanges; {
	case printer.Format == report.FormatJSON || printer.Format == report.FormatYAML:
		err = printer.PrintObject(result)
	default:
		if f.showsFieldChanges {
			scope = preview.WithFieldChanges
		}
		err = printer.PrintReport(result.NewReport(scope))
	}
	if err != nil {
		return err
	}
	_, err = p.Out.Write(p.answerText.Bytes())
	return err
}
