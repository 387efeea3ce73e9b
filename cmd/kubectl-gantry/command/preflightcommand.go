package command

import (
	"context"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/explain"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/portforward"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/preflight"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/report"
	"github.com/gantry-lb/gantry/internal/nodefacts"
)

// nodesAnswerTimeout is how long the nodes may take until their Pods run and have answered, unless
// the user gives another time: a node may have to pull the image.
const nodesAnswerTimeout = time.Minute

// preflightFlags are the flags of the command preflight.
type preflightFlags struct {
	image         string
	asksNodes     bool
	partsToBeUsed []string
	answerTimeout time.Duration
}

// newPreflightCommand returns the command preflight.
func (p *program) newPreflightCommand() *cobra.Command {
	var f preflightFlags
	c := &cobra.Command{
		Use: "preflight", Short: "check whether the cluster and its nodes have what Gantry needs", Args: cobra.NoArgs,
		Long: "preflight checks whether the cluster and its nodes have what Gantry needs. Before an installation, it asks the nodes themselves: --image names\n" +
			"Gantry's image, of which it runs a Pod on each node, in a namespace of their own, and deletes both afterwards. After an installation, it reads\n" +
			"what the speakers report; with --on-nodes, it asks the nodes too.",
		RunE: func(c *cobra.Command, _ []string) error { return p.runPreflight(c.Context(), f) },
	}
	c.Flags().StringVar(&f.image, "image", "", "Gantry's image, to ask the nodes with; after an installation, that of the speakers is the default")
	c.Flags().BoolVar(&f.asksNodes, "on-nodes", false, "run a Pod on each node for a moment, which looks at the node's settings")
	c.Flags().StringSliceVar(&f.partsToBeUsed, "for", nil, "parts of Gantry that will be used, to check what they need too: bgp, bfd, ipv6, passwords, continuity")
	c.Flags().DurationVar(&f.answerTimeout, "timeout", nodesAnswerTimeout, "how long to wait for the nodes")
	return c
}

// runPreflight reads the cluster, asks the nodes if it should, and prints what the checks say.
func (p *program) runPreflight(ctx context.Context, f preflightFlags) error {
	return p.printAnswerOnce(ctx, func(ctx context.Context, e *explain.Explainer) error {
		reader, gantryNamespace := e.ReaderAndNamespace()
		cluster, err := preflight.ReadCluster(ctx, reader, gantryNamespace)
		if err != nil {
			return err
		}
		if err := cluster.Needs.AddNeeds(f.partsToBeUsed); err != nil {
			return err
		}
		if f.asksNodes || f.image != "" {
			if err := p.askNodes(ctx, cluster, f); err != nil {
				return err
			}
		}
		r := preflight.RunChecks(&cluster.Facts)
		for _, m := range reader.MissingRights() {
			r.MissingRights = append(r.MissingRights, m.String())
		}
		if len(r.MissingRights) > 0 && r.Result == report.ResultWell {
			r.Result = report.ResultUnknown
		}
		return p.printReportAndKeepResult(r)
	})
}

// askNodes runs the Pods of the preflight.
func (p *program) askNodes(ctx context.Context, cluster *preflight.Cluster, f preflightFlags) error {
	connected, err := p.newConnection()
	if err != nil {
		return err
	}
	return cluster.AskNodes(ctx, preflight.NodeQuestions{
		API: connected.api, Image: f.image, Now: connected.clock.now, AnswerTimeout: f.answerTimeout, ShowProgress: p.showProgress,
		FetchPage: func(ctx context.Context, pod client.ObjectKey, path string) ([]byte, error) {
			return portforward.FetchPodPage(ctx, connected.restConfig, portforward.PodPageLocation{Namespace: pod.Namespace, Pod: pod.Name, Port: nodefacts.PagePort, Path: path})
		},
	})
}
