package command

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/explain"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/report"
)

// newExplainCommand returns the command explain.
func (p *program) newExplainCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "explain", Short: "say why something works or does not",
		Long:              "explain says in its first line whether something works, and why not. Then it lists what has to hold, from the choice of a pool to the wire.",
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              p.explainKindSlashName,
	}
	p.addLiveFlag(c)
	_ = c.Flags().MarkHidden(liveFlagName) // it is shown for Services
	service := p.newExplainSubcommand([]string{"service", "services", "svc"}, "say whether a Service works, and why not", func(ctx context.Context, e *explain.Explainer, name string) (*report.Report, error) {
		key, err := p.serviceKeyInNamespaceOrAll(name)
		if err != nil {
			return nil, err
		}
		return e.ExplainService(ctx, key)
	})
	p.addLiveFlag(service)
	c.AddCommand(service)
	for _, subject := range []struct {
		spellings []string
		short     string
		answer    func(*explain.Explainer, context.Context, string) (*report.Report, error)
	}{
		{[]string{"node", "nodes", "no"}, "say whether a node can announce, and what it announces", (*explain.Explainer).ExplainNode},
		{[]string{"pool", "pools", "ipaddresspool", "ipaddresspools", "ipap"}, "say whether a pool can serve, and how full it is", (*explain.Explainer).ExplainPool},
		{[]string{"peer", "peers", "bgppeer", "bgppeers", "bgpp"}, "say whether the sessions with a router are established", (*explain.Explainer).ExplainPeer},
		{[]string{"advertisement", "advertisements", "l2advertisement", "bgpadvertisement", "l2adv", "bgpadv"}, "say what an advertisement advertises", (*explain.Explainer).ExplainAdvertisement},
		{[]string{"address", "addresses"}, "say who has an address, and whether a Service may get it", (*explain.Explainer).ExplainAddress},
	} {
		c.AddCommand(p.newExplainSubcommand(subject.spellings, subject.short, func(ctx context.Context, e *explain.Explainer, name string) (*report.Report, error) {
			return subject.answer(e, ctx, name)
		}))
	}
	return c
}

// liveFlagName is the flag of Services alone.
const liveFlagName = "live"

func (p *program) addLiveFlag(c *cobra.Command) {
	c.Flags().BoolVar(&p.readsFromSpeakers, liveFlagName, false, "also ask the speakers themselves, by port-forward: which routes each router gets")
}

// explainKindSlashName runs the subcommand for an argument KIND/NAME. It gets all arguments that
// name no subcommand.
func (p *program) explainKindSlashName(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return c.Help()
	}
	kind, name, hasSlash := strings.Cut(args[0], "/")
	at := slices.IndexFunc(c.Commands(), func(s *cobra.Command) bool { return s.Name() == kind || s.HasAlias(kind) })
	if at < 0 {
		return unknownKindError(c, kind)
	}
	subcommand := c.Commands()[at]
	switch {
	case !hasSlash || name == "" || len(args) > 1:
		return fmt.Errorf("explain takes one KIND/NAME, or KIND NAME, not %q", args)
	case p.readsFromSpeakers && subcommand.Flags().Lookup(liveFlagName) == nil:
		return fmt.Errorf("--%s is only for a service, not for a %s", liveFlagName, kind)
	}
	subcommand.SetContext(c.Context())
	return subcommand.RunE(subcommand, []string{name})
}

// unknownKindError says which kinds can be explained, the near ones first.
func unknownKindError(c *cobra.Command, kind string) error {
	c.SuggestionsMinimumDistance = 2
	if near := c.SuggestionsFor(kind); len(near) > 0 {
		return fmt.Errorf("unknown kind %q: did you mean %s?", kind, strings.Join(near, " or "))
	}
	var kinds []string
	for _, s := range c.Commands() {
		kinds = append(kinds, s.Name())
	}
	return fmt.Errorf("unknown kind %q: write KIND NAME; the kinds are %s", kind, strings.Join(kinds, ", "))
}

// completeObjectName returns the names that the shell suggests. Only the first argument is a name.
func (p *program) completeObjectName(ctx context.Context, kind string, argumentCount int) []cobra.Completion {
	namespace, err := p.namespaceOrAll()
	if err != nil || argumentCount > 0 {
		return nil
	}
	e, err := p.newExplainer()
	if err != nil {
		return nil
	}
	return e.ListNamesForCompletion(ctx, kind, namespace)
}

// explainObjectFunc answers a question about one object.
type explainObjectFunc func(ctx context.Context, e *explain.Explainer, name string) (*report.Report, error)

// newExplainSubcommand returns a subcommand of explain. It has several names, as kinds have.
func (p *program) newExplainSubcommand(spellings []string, short string, answer explainObjectFunc) *cobra.Command {
	return &cobra.Command{
		Use: spellings[0] + " NAME", Aliases: spellings[1:], Short: short, Args: cobra.ExactArgs(1),
		ValidArgsFunction: func(c *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
			return p.completeObjectName(c.Context(), spellings[0], len(args)), cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(c *cobra.Command, args []string) error {
			return p.printAnswerOnceOrWatch(c.Context(), func(ctx context.Context, e *explain.Explainer) error {
				r, err := answer(ctx, e, args[0])
				if err != nil {
					return err
				}
				return p.printReportAndKeepResult(r)
			})
		},
	}
}
