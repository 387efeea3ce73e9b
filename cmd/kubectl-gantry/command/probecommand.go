package command

import (
	"context"
	"strings"

	"github.com/spf13/cobra"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/explain"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/probe"
)

// newProbeCommand returns the command probe.
func (p *program) newProbeCommand() *cobra.Command {
	c := &cobra.Command{Use: "probe", Short: "ask a Service from this machine, and say at which step that fails", ValidArgsFunction: cobra.NoFileCompletions}
	c.AddCommand(&cobra.Command{
		Use: "service NAME", Aliases: []string{"services", "svc"}, Short: "ask each port of a Service at each of its addresses, by TCP, UDP or HTTP", Args: cobra.ExactArgs(1),
		ValidArgsFunction: func(c *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
			return p.completeObjectName(c.Context(), "service", len(args)), cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(c *cobra.Command, args []string) error {
			if p.bundleFile != "" {
				return errBundleIsNoCluster
			}
			return p.printAnswerOnceOrWatch(c.Context(), func(ctx context.Context, e *explain.Explainer) error {
				namespace, err := p.namespaceOrAll()
				if err != nil {
					return err
				}
				key := client.ObjectKey{Namespace: namespace, Name: args[0]}
				if in, only, found := strings.Cut(args[0], "/"); found {
					key = client.ObjectKey{Namespace: in, Name: only}
				}
				r, err := probe.ReportService(ctx, e, key, probe.AskPort)
				if err != nil {
					return err
				}
				return p.printReportAndKeepResult(r)
			})
		},
	})
	return c
}
