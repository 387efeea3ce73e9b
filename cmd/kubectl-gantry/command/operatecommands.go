package command

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/operate"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/preview"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/report"
)

// operationFlags are the flags of all commands that change something.
type operationFlags struct {
	isDryRun      bool
	awaitsDone    bool
	awaitTimeout  time.Duration
	requestedNode string
	retirement    operate.RetirementSettings
}

// defaultAwaitTimeout is how long a command waits until its change is carried out.
const defaultAwaitTimeout = 10 * time.Minute

// prepareOperationFunc makes the Operation of a command.
type prepareOperationFunc func(ctx context.Context, o *operate.Operator, f *operationFlags, arg string) (*operate.Operation, error)

// newOperationCommands returns the commands that change something.
func (p *program) newOperationCommands() []*cobra.Command {
	move := &cobra.Command{Use: "move", Short: "move the addresses of a Service to another node"}
	service := p.newOperationCommand("service NAME", "move the addresses of a Service to a node, by the annotation "+names.AnnotationRequestedHolder, func(ctx context.Context, o *operate.Operator, f *operationFlags, arg string) (*operate.Operation, error) {
		key, err := p.serviceKeyOf(arg)
		if err != nil {
			return nil, err
		}
		return o.MoveService(ctx, key, f.requestedNode)
	})
	service.Aliases = []string{"services", "svc"}
	_ = service.MarkFlagRequired("to")
	move.AddCommand(service)
	release := p.newOperationCommand("release ADDRESS", "let the Services of an address exchange it for another one, by the annotation "+names.AnnotationAddressesToExchange, func(ctx context.Context, o *operate.Operator, _ *operationFlags, arg string) (*operate.Operation, error) {
		address, err := netip.ParseAddr(arg)
		if err != nil {
			return nil, fmt.Errorf("%q is no address: write one such as 192.0.2.10", arg)
		}
		return o.ReleaseAddress(ctx, address.Unmap())
	})
	return []*cobra.Command{
		p.newOperationCommand("drain NODE", "move all addresses and routes away from a node, by the annotation "+names.AnnotationDrainNode, func(ctx context.Context, o *operate.Operator, _ *operationFlags, arg string) (*operate.Operation, error) {
			return o.DrainNode(ctx, arg)
		}),
		p.newOperationCommand("undrain NODE", "let a node have addresses and routes again", func(ctx context.Context, o *operate.Operator, _ *operationFlags, arg string) (*operate.Operation, error) {
			return o.UndrainNode(ctx, arg)
		}),
		move, release,
		p.newOperationCommand("retire POOL", "let the Services of a pool leave its addresses, by spec.gantry.retire", func(ctx context.Context, o *operate.Operator, f *operationFlags, arg string) (*operate.Operation, error) {
			return o.RetirePool(ctx, arg, f.retirement)
		}),
	}
}

// serviceKeyOf returns the Service that an argument names, with its namespace or without.
func (p *program) serviceKeyOf(arg string) (client.ObjectKey, error) {
	return parseServiceKey(arg, func() (string, error) {
		namespace, _, err := p.kubeconfigFlags.ToRawKubeConfigLoader().Namespace()
		return namespace, err
	})
}

// serviceKeyInNamespaceOrAll is serviceKeyOf for a command that takes --all-namespaces too.
func (p *program) serviceKeyInNamespaceOrAll(arg string) (client.ObjectKey, error) {
	return parseServiceKey(arg, p.namespaceOrAll)
}

// parseServiceKey reads NAMESPACE/NAME, as the tables write it, or NAME alone.
func parseServiceKey(arg string, findNamespace func() (string, error)) (client.ObjectKey, error) {
	if in, name, found := strings.Cut(arg, "/"); found {
		return client.ObjectKey{Namespace: in, Name: name}, nil
	}
	namespace, err := findNamespace()
	return client.ObjectKey{Namespace: namespace, Name: arg}, err
}

// newOperationCommand returns a command that says what will happen, does it, and waits until it is
// done.
func (p *program) newOperationCommand(use, short string, prepare prepareOperationFunc) *cobra.Command {
	f := &operationFlags{}
	c := &cobra.Command{
		Use: use, Short: short, Args: cobra.ExactArgs(1),
		Long: short + ".\nIt says what will happen, makes the change, waits until Gantry has carried it out, and says what is left.\n" +
			"The exit status is 0 if nothing is left, 1 if something is, and 2 if that could not be told. With --dry-run it is that of plan.",
		RunE: func(c *cobra.Command, args []string) error {
			return p.runOperation(c.Context(), f, func(ctx context.Context, o *operate.Operator) (*operate.Operation, error) {
				return prepare(ctx, o, f, args[0])
			})
		},
	}
	c.Flags().BoolVar(&f.isDryRun, "dry-run", false, "only say what would happen")
	c.Flags().BoolVar(&f.awaitsDone, "wait", true, "wait until it is done")
	c.Flags().DurationVar(&f.awaitTimeout, "timeout", defaultAwaitTimeout, "how long to wait until it is done")
	switch verb, _, _ := strings.Cut(use, " "); verb {
	case "service":
		c.Flags().StringVar(&f.requestedNode, "to", "", "the node that should answer for the addresses")
	case "retire":
		c.Flags().StringSliceVar(&f.retirement.Addresses, "addresses", nil, "retire only these CIDRs, ranges and addresses of the pool")
		c.Flags().Int32Var(&f.retirement.ServicesPerMinute, "services-per-minute", 0, "how many Services get other addresses in a minute; 0 for the default of the pool")
	}
	return c
}

// operationResult is the answer of a command that changes something, for JSON.
type operationResult struct {
	Title   string            `json:"title"`
	Result  report.Result     `json:"result"`
	Preview *preview.Preview  `json:"preview"`
	Done    *operate.Progress `json:"progress,omitempty"`
}

// runOperation says what the Operation would do, and does it.
func (p *program) runOperation(ctx context.Context, f *operationFlags, prepare func(context.Context, *operate.Operator) (*operate.Operation, error)) error {
	connected, err := p.newConnection()
	if err != nil {
		return err
	}
	operator := &operate.Operator{API: connected.api, GantryNamespace: p.gantryNamespace}
	op, err := prepare(ctx, operator)
	if err != nil {
		return err
	}
	runner := &preview.DryRunner{API: connected.api, GantryNamespace: p.gantryNamespace}
	var edited []preview.EditedObject
	for _, c := range op.Changes {
		o, err := runner.DryRunEdit(ctx, c.Object, c.Change)
		if err != nil {
			return err
		}
		edited = append(edited, o)
	}
	expected, err := preview.PreviewEdit(ctx, p.newExplainerOfConnection(connected), edited)
	if err != nil {
		return err
	}
	result := &operationResult{Title: op.Title, Result: expected.Result, Preview: expected}
	if err := p.printOperationStep(expected.NewReport(preview.WithFieldChanges)); err != nil {
		return err
	}
	if blocked := explainBlockedOperation(expected); blocked != "" && !f.isDryRun {
		if expected.Reason != names.ReasonNotInstalled {
			result.Result = report.ResultNotWell
		}
		return errors.Join(p.printOperationStep(&report.Report{Result: result.Result, Answer: op.Title + ": nothing was changed: " + blocked}), p.finishOperation(result))
	}
	if f.isDryRun {
		return p.finishOperation(result)
	}
	if err := operator.ApplyChanges(ctx, op); err != nil {
		return err
	}
	if !f.awaitsDone {
		result.Result = report.ResultWell
		return p.finishOperation(result)
	}
	progress, err := op.AwaitDone(ctx, f.awaitTimeout, p.printProgressLine)
	result.Done = &progress
	if err != nil {
		result.Result = report.ResultUnknown
		return errors.Join(p.finishOperation(result), fmt.Errorf("%s: the change was made, but it could not be told whether it is carried out: %w", op.Title, err))
	}
	result.Result = report.ResultWell
	if !progress.IsDone || len(progress.Left) > 0 {
		result.Result = report.ResultNotWell
	}
	return errors.Join(p.printOperationStep(newProgressReport(op, &progress)), p.finishOperation(result))
}

// explainBlockedOperation says why the change must not be made: there is no Gantry that would carry
// it out, the API server refuses it, or the node that a Service asks for cannot have its addresses.
func explainBlockedOperation(expected *preview.Preview) string {
	if expected.Reason == names.ReasonNotInstalled {
		return expected.Answer
	}
	for _, o := range expected.Objects {
		if o.Refusal != "" {
			return "the API server refuses it: " + o.Refusal
		}
	}
	for _, e := range expected.Effects {
		if e.Reason == names.ReasonHolderUnavailable {
			return e.Text
		}
	}
	return ""
}

// newProgressReport says what is left of an Operation.
func newProgressReport(op *operate.Operation, progress *operate.Progress) *report.Report {
	out := &report.Report{Result: report.ResultWell, Answer: fmt.Sprintf("%s: done: %s", op.Title, progress.Text)}
	if !progress.IsDone || len(progress.Left) > 0 {
		out.Result, out.Answer = report.ResultNotWell, fmt.Sprintf("%s: something is left: %s", op.Title, progress.Text)
	}
	for _, left := range progress.Left {
		out.Checks = append(out.Checks, report.Check{Name: "left", Result: report.ResultNotWell, Text: left})
	}
	return out
}

// printsObject reports whether the answer is one object, so that nothing else may be printed.
func (p *program) printsObject() bool {
	return p.outputFormat == string(report.FormatJSON) || p.outputFormat == string(report.FormatYAML)
}

// printProgressLine says how far an Operation is.
func (p *program) printProgressLine(text string) {
	w := p.Out
	if p.printsObject() {
		w = p.ErrOut
	}
	fmt.Fprintf(w, "%s %s\n", p.Now().Format(time.TimeOnly), text)
}

// printOperationStep prints a step of an Operation for people. Programs get one object at the end.
func (p *program) printOperationStep(step *report.Report) error {
	if p.printsObject() {
		return nil
	}
	p.answerText.Reset()
	printer, err := p.newPrinter()
	if err != nil {
		return err
	}
	if err := printer.PrintReport(step); err != nil {
		return err
	}
	_, err = p.Out.Write(p.answerText.Bytes())
	return err
}

// finishOperation keeps the result, and prints it for programs.
func (p *program) finishOperation(result *operationResult) error {
	p.keepWorstResult(result.Result)
	if !p.printsObject() {
		return nil
	}
	p.answerText.Reset()
	printer, err := p.newPrinter()
	if err != nil {
		return err
	}
	if err := printer.PrintObject(result); err != nil {
		return err
	}
	_, err = p.Out.Write(p.answerText.Bytes())
	return err
}
