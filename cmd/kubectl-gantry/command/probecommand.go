package command

import (
	"context"
	"errors"
	"strings"

	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/explain"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/probe"
	"github.com/spf13/cobra"
)

// newProbeCommand returns the command probe.
func (p *program) newProbeCommand() *cobra.Command {
	c := &cobra.Command{Use: "probe", Short: "ask a Service from this machine, and say at which step that fails", ValidArgsFunction: cobra.NoFileCompletions}
	c.AddCommand(p.newProbeServiceCommand())
	return c
}

// newProbeServiceCommand returns the command probe service.
func (p *program) newProbeServiceCommand() *cobra.Command {
	from := ""
	c := &cobra.Command{
		Use: "service NAME [--from node NODE]", Aliases: []string{"services", "svc"}, Short: "ask each port of a Service at each of its addresses, by TCP, UDP or HTTP",
		Long: "probe service asks each port of a Service at each of its addresses, from this machine. With --from node NODE, the speaker of that node\n" +
			"also asks for each address by ARP or NDP, and says which hosts answer.",
		Args: func(_ *cobra.Command, args []string) error {
			_, _, err := parseProbeArguments(args, from)
			return err
		},
		DisableFlagsInUseLine: true,
		ValidArgsFunction: func(c *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
			kind, argumentCount := "service", len(args)
			if from == probeFromNode && argumentCount == 1 {
				kind, argumentCount = "node", 0
			}
			return p.completeObjectName(c.Context(), kind, argumentCount), cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(c *cobra.Command, args []string) error {
			name, node, err := parseProbeArguments(args, from)
			if err != nil {
				return err
			}
			return p.probeService(c.Context(), name, node)
		},
	}
	c.Flags().StringVar(&from, "from", "", "\"node NODE\" or node/NODE: the speaker of the node asks too, by ARP and NDP")
	return c
}

// probeFromNode is the only kind from which a Service is probed.
const probeFromNode = "node"

// parseProbeArguments returns the name of the Service, and that of the node to ask from. The node
// follows the flag as a word of its own, or after a slash.
func parseProbeArguments(args []string, from string) (service, node string, err error) {
	wanted := 1
	switch kind, name, hasSlash := strings.Cut(from, "/"); {
	case from == "":
	case from == probeFromNode && len(args) == 2:
		wanted, node = 2, args[1]
	case kind == probeFromNode && hasSlash && name != "":
		node = name
	default:
		return "", "", errors.New("write the name of the Service first, and then --from node NODE, or --from node/NODE")
	}
	if len(args) != wanted {
		return "", "", errors.New("write the name of one Service: probe service NAME")
	}
	return args[0], node, nil
}

// probeService asks a Service, and from a node if one is named.
func (p *program) probeService(ctx context.Context, name, node string) error {
	if p.bundleFile != "" {
		return errBundleIsNoCluster
	}
	key, err := p.serviceKeyInNamespaceOrAll(name)
	if err != nil {
		return err
	}
	connected, err := p.newConnection()
	if err != nil {
		return err
	}
	asker := &probe.NodeAsker{API: connected.api, GantryNamespace: p.gantryNamespace, AnswerTimeout: probe.DefaultNodeAnswerTimeout}
	return p.printAnswerOnceOrWatch(ctx, func(ctx context.Context, e *explain.Explainer) error {
		r, err := probe.ReportService(ctx, e, key, probe.Questions{AskPort: probe.AskPort, FromNode: node, AskNode: asker.AskNode})
		if err != nil {
			return err
		}
		return p.printReportAndKeepResult(r)
	})
}
