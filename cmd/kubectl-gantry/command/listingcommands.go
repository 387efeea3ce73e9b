package command

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/explain"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/report"
)

// newStatusCommand returns the command status.
func (p *program) newStatusCommand() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "say whether Gantry is well, and what is not, the worst first", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return p.printAnswerOnceOrWatch(c.Context(), func(ctx context.Context, e *explain.Explainer) error {
				r, err := e.ExplainInstallation(ctx)
				if err != nil {
					return err
				}
				return p.printReportAndKeepResult(r)
			})
		},
	}
}

// newListingCommands returns the commands that print a table.
func (p *program) newListingCommands() []*cobra.Command {
	services := p.newListingCommand("services", "list the Services of type LoadBalancer, and what is wrong with them", func(e *explain.Explainer, ctx context.Context) (*report.Listing, error) {
		namespace, err := p.namespaceOrAll()
		if err != nil {
			return nil, err
		}
		return e.ListServices(ctx, namespace)
	})
	return []*cobra.Command{
		services, p.newRoutesCommand(),
		p.newListingCommand("pools", "list the pools: use, free addresses, largest free range", (*explain.Explainer).ListPools),
		p.newListingCommand("holders", "list which node answers for which address", (*explain.Explainer).ListHolders),
		p.newListingCommand("moves", "list which address moved from which node to which, the newest first", (*explain.Explainer).ListMoves),
		p.newListingCommand("peers", "list the BGP sessions with routers", (*explain.Explainer).ListPeers),
	}
}

// namespaceOrAll returns the namespace that the user works in; empty for all.
func (p *program) namespaceOrAll() (string, error) {
	if p.isEveryNamespace {
		return "", nil
	}
	if p.bundleFile != "" && *p.kubeconfigFlags.Namespace == "" {
		b, err := p.readBundleFile()
		if err != nil {
			return "", err
		}
		return b.Manifest.UserNamespace, nil
	}
	namespace, _, err := p.kubeconfigFlags.ToRawKubeConfigLoader().Namespace()
	if err != nil {
		return "", fmt.Errorf("reading the kubeconfig: %w", err)
	}
	return namespace, nil
}

// printListingOnceOrWatch prints a table, or with --watch one after the other.
func (p *program) printListingOnceOrWatch(ctx context.Context, list explain.ListingFunc) error {
	return p.printAnswerOnceOrWatch(ctx, func(ctx context.Context, e *explain.Explainer) error {
		l, err := list(e, ctx)
		if err != nil {
			return err
		}
		printer, err := p.newPrinter()
		if err != nil {
			return err
		}
		p.keepWorstResult(l.Result)
		return printer.PrintListing(l)
	})
}

// newRoutesCommand returns the command routes. Only a speaker knows its routes.
func (p *program) newRoutesCommand() *cobra.Command {
	return &cobra.Command{
		Use: "routes NODE", Short: "list what each router gets from a node, with the attributes", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			p.readsFromSpeakers = true
			return p.printListingOnceOrWatch(c.Context(), func(e *explain.Explainer, ctx context.Context) (*report.Listing, error) {
				return e.ListRoutes(ctx, args[0])
			})
		},
	}
}

func (p *program) newListingCommand(name, short string, list explain.ListingFunc) *cobra.Command {
	return &cobra.Command{
		Use: name, Short: short, Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return p.printListingOnceOrWatch(c.Context(), list) },
	}
}
