// Package command has the commands and flags of kubectl gantry. It prints what the packages explain
// and preview answer, makes the changes of package operate, and turns the answer into an exit
// status.
package command

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/explain"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/objects"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/portforward"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/report"
)

// ProcessEnvironment is what the program gets from its process.
type ProcessEnvironment struct {
	// ProgramPath is the path by which the program was started.
	ProgramPath    string
	Args           []string
	Out, ErrOut    io.Writer
	Now            func() time.Time
	LookupVariable func(string) (string, bool)
}

// program is one run of kubectl gantry.
type program struct {
	ProcessEnvironment
	kubeconfigFlags  *genericclioptions.ConfigFlags
	gantryNamespace  string
	outputFormat     string
	isEveryNamespace bool
	// bundleFile is the support bundle to read from instead of a cluster; empty for a cluster.
	bundleFile string
	// readsFromSpeakers asks the speakers themselves, isWatching draws the answer again and again.
	readsFromSpeakers, isWatching bool
	// worstResult is the worst of what was answered.
	worstResult report.Result
	// answerText is the answer that is being made.
	answerText bytes.Buffer
}

// RunProgram runs the command of the arguments, and returns the exit status: 0 if all is well, 1 if
// something is not, 2 if that could not be told.
func RunProgram(ctx context.Context, e ProcessEnvironment) int {
	ctrllog.SetLogger(logr.Discard()) // the errors of the API server are in the answer
	p := &program{ProcessEnvironment: e, kubeconfigFlags: genericclioptions.NewConfigFlags(true), worstResult: report.ResultWell}
	root := p.newRootCommand()
	root.SetArgs(argsWithCompletionCommand(e))
	root.SetOut(e.Out)
	root.SetErr(e.ErrOut)
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(e.ErrOut, p.describeError(err))
		return report.ResultUnknown.ExitStatus()
	}
	return p.worstResult.ExitStatus()
}

// argsWithCompletionCommand returns the arguments. kubectl asks a program with the name
// kubectl_complete-gantry how to complete "kubectl gantry": it may be a link to this one.
func argsWithCompletionCommand(e ProcessEnvironment) []string {
	name := strings.TrimSuffix(filepath.Base(e.ProgramPath), ".exe")
	if name != "kubectl_complete-gantry" {
		return e.Args
	}
	return append([]string{cobra.ShellCompRequestCmd}, e.Args...)
}

// newRootCommand returns the command with all its subcommands.
func (p *program) newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use: "kubectl-gantry", Short: "says whether Gantry and its Services work, and why not",
		Long: "kubectl gantry says whether Gantry and its Services work, and why not.\n" +
			"The exit status is 0 if all is well, 1 if something is not, and 2 if that could not be told.",
		Annotations:  map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl gantry"},
		SilenceUsage: true, SilenceErrors: true,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			_, err := report.ParseFormat(p.outputFormat)
			return err
		},
	}
	flags := root.PersistentFlags()
	p.kubeconfigFlags.AddFlags(flags)
	flags.StringVar(&p.gantryNamespace, "gantry-namespace", names.DefaultNamespace, "the namespace of Gantry's own objects")
	flags.StringVarP(&p.outputFormat, "output", "o", "table", "table, wide, json or yaml")
	flags.BoolVarP(&p.isEveryNamespace, "all-namespaces", "A", false, "look at the Services of all namespaces; everything else has only one")
	flags.BoolVarP(&p.isWatching, "watch", "w", false, "draw the answer again every two seconds")
	flags.StringVar(&p.bundleFile, bundleFileFlagName, "", "read from a file of support-bundle instead of a cluster")
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "wide", "json", "yaml"}, cobra.ShellCompDirectiveNoFileComp))
	root.AddCommand(p.newExplainCommand(), p.newStatusCommand(), p.newMigrateCommand())
	root.AddCommand(p.newListingCommands()...)
	root.AddCommand(p.newPreviewCommand())
	root.AddCommand(p.newOperationCommands()...)
	root.AddCommand(p.newSupportBundleCommand(), p.newPreflightCommand(), p.newProbeCommand())
	return root
}

// newExplainer connects to the cluster, or opens the support bundle.
func (p *program) newExplainer() (*explain.Explainer, error) {
	if p.bundleFile != "" {
		return p.newExplainerOfBundle()
	}
	c, err := p.newConnection()
	if err != nil {
		return nil, err
	}
	o := explain.ExplainerOptions{ObjectReader: objects.NewReader(c.api, explain.LabelsFuncByIndex), GantryNamespace: p.gantryNamespace, Now: c.clock.now, FastestAPIAnswerDelay: c.clock.shortestResponseDelay, ShowProgress: p.showProgress}
	if p.readsFromSpeakers {
		o.FetchSpeakerPage = func(ctx context.Context, pod, path string) ([]byte, error) {
			return portforward.FetchPodPage(ctx, c.restConfig, portforward.PodPageLocation{Namespace: p.gantryNamespace, Pod: pod, Port: speakerRoutesPort, Path: path})
		}
	}
	return explain.NewExplainer(o), nil
}

// speakerRoutesPort is the port of a speaker with the page of its routes.
const speakerRoutesPort = 7475

// printAnswerOnceOrWatch answers once, or with --watch until ctx ends: each time with new objects.
// With --watch, an error is one of the answers: the API server may return.
func (p *program) printAnswerOnceOrWatch(ctx context.Context, answer func(context.Context, *explain.Explainer) error) error {
	if !p.isWatching {
		return p.printAnswerOnce(ctx, answer)
	}
	for {
		if err := p.printAnswerOnce(ctx, answer); err != nil && ctx.Err() == nil {
			p.worstResult = report.ResultUnknown
			fmt.Fprintln(p.ErrOut, p.describeError(err))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(watchInterval):
		}
	}
}

// printAnswerOnce reads new objects, and writes the answer as a whole.
func (p *program) printAnswerOnce(ctx context.Context, answer func(context.Context, *explain.Explainer) error) error {
	e, err := p.newExplainer()
	if err != nil {
		return err
	}
	result := p.worstResult
	p.worstResult = report.ResultWell
	p.answerText.Reset()
	if err := answer(ctx, e); err != nil {
		p.worstResult = result
		return err
	}
	if p.isWatching && p.isTerminal(p.Out) {
		fmt.Fprint(p.Out, "\x1b[H\x1b[2J") // the cursor to the top, and nothing below it
	}
	_, err = p.Out.Write(p.answerText.Bytes())
	return err
}

// watchInterval is the time between two answers with --watch.
const watchInterval = 2 * time.Second

// showProgress says what takes long, if somebody waits at a terminal.
func (p *program) showProgress(text string) {
	if p.isTerminal(p.ErrOut) {
		fmt.Fprintln(p.ErrOut, text+" ...")
	}
}

// newPrinter returns the printer for the flags.
func (p *program) newPrinter() (*report.Printer, error) {
	f, err := report.ParseFormat(p.outputFormat)
	if err != nil {
		return nil, err
	}
	_, noColor := p.LookupVariable("NO_COLOR")
	return &report.Printer{Out: &p.answerText, Format: f, HasColor: !noColor && p.isTerminal(p.Out) && enableColors(p.Out)}, nil
}

// isTerminal reports whether somebody reads what is written.
func (p *program) isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	term, _ := p.LookupVariable("TERM")
	return err == nil && info.Mode()&os.ModeCharDevice != 0 && term != "dumb"
}

// keepWorstResult keeps the worst result.
func (p *program) keepWorstResult(r report.Result) {
	if p.worstResult == report.ResultWell || p.worstResult == report.ResultUnknown && r == report.ResultNotWell {
		p.worstResult = r
	}
}

// printReportAndKeepResult prints an answer, and keeps its result.
func (p *program) printReportAndKeepResult(r *report.Report) error {
	printer, err := p.newPrinter()
	if err != nil {
		return err
	}
	p.keepWorstResult(r.Result)
	return printer.PrintReport(r)
}

// describeError makes one line of an error.
func (p *program) describeError(err error) string {
	text := strings.Join(strings.Fields(err.Error()), " ")
	switch {
	case errors.Is(err, context.Canceled):
		return "interrupted"
	case objects.IsAPIServerUnreachable(err):
		return "the cluster cannot be reached: " + text
	}
	return text
}
