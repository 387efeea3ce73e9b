package command

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/chartvalues"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/legacyconfig"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/migrate"
	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/report"
)

// migrateFlags are the flags of the command migrate.
type migrateFlags struct {
	valuesFile, configMapFile, helmRelease string
	isCheck, isConfirmed                   bool
}

// newMigrateCommand returns the command migrate.
func (p *program) newMigrateCommand() *cobra.Command {
	var f migrateFlags
	c := &cobra.Command{
		Use: "migrate", Short: "help to move from MetalLB to Gantry, and back", Args: cobra.NoArgs,
		Long: "migrate prepares a cluster with MetalLB for Gantry. It shows each change, and asks before it makes it. It restarts\n" +
			"nothing, and deletes nothing that holds configuration. With --check it only reads, and says what differs and which\n" +
			"steps to take. docs/from-metallb.md has all steps. FILE may be \"-\" for the standard input.",
		RunE: func(c *cobra.Command, _ []string) error {
			switch {
			case f.valuesFile != "" && f.configMapFile != "", f.isCheck && (f.valuesFile != "" || f.configMapFile != ""):
				return errors.New("--check, --values and --from-configmap exclude each other")
			case f.valuesFile != "":
				return p.translateValuesFile(c, f.valuesFile)
			case f.configMapFile != "":
				return p.convertConfigMapFile(c, f.configMapFile)
			case f.isCheck:
				return p.checkMigration(c, &f)
			}
			return p.prepareMigration(c, &f)
		},
	}
	c.Flags().StringVar(&f.valuesFile, "values", "", "translate a values file of MetalLB's chart 0.13 to 0.16 into one for Gantry's chart")
	c.Flags().StringVar(&f.configMapFile, "from-configmap", "", "turn the ConfigMap of MetalLB up to 0.12 into objects")
	c.Flags().StringVar(&f.helmRelease, "helm-release", "", "give the CRDs to this release of Gantry, in Gantry's namespace, for a Helm without --take-ownership")
	c.Flags().BoolVar(&f.isCheck, "check", false, "change nothing: say what is in the cluster, what differs with Gantry, and which steps to take")
	c.Flags().BoolVar(&f.isConfirmed, "yes", false, "make all changes without asking")
	return c
}

// readFileOrStandardInput reads a file; "-" is the standard input.
func readFileOrStandardInput(c *cobra.Command, path string) ([]byte, error) {
	if path == "-" {
		return io.ReadAll(c.InOrStdin())
	}
	return os.ReadFile(path)
}

// translateValuesFile prints the values for the chart of Gantry. A value without counterpart is no
// success: somebody has to decide.
func (p *program) translateValuesFile(c *cobra.Command, path string) error {
	text, err := readFileOrStandardInput(c, path)
	if err != nil {
		return err
	}
	t, err := chartvalues.TranslateValues(text)
	if err != nil {
		return err
	}
	if len(t.ValuesWithOutcome(chartvalues.OutcomeNone)) > 0 {
		p.keepWorstResult(report.ResultNotWell)
	}
	if p.isStructuredOutput() {
		return p.printStructured(t)
	}
	file, err := chartvalues.FormatAsValuesFile(t)
	if err != nil {
		return err
	}
	_, err = fmt.Fprint(p.Out, file)
	return err
}

// convertConfigMapFile prints the objects that mean the same as a ConfigMap.
func (p *program) convertConfigMapFile(c *cobra.Command, path string) error {
	text, err := readFileOrStandardInput(c, path)
	if err != nil {
		return err
	}
	converted, err := legacyconfig.ConvertConfigMap(text, p.gantryNamespace)
	if err != nil {
		return err
	}
	manifests, err := legacyconfig.FormatAsManifests(converted)
	if err != nil {
		return err
	}
	_, err = fmt.Fprint(p.Out, manifests)
	return err
}

// isStructuredOutput reports whether a program reads the output.
func (p *program) isStructuredOutput() bool {
	f, err := report.ParseFormat(p.outputFormat)
	return err == nil && (f == report.FormatJSON || f == report.FormatYAML)
}

// printStructured prints a value as JSON or YAML.
func (p *program) printStructured(o any) error {
	printer, err := p.newPrinter()
	if err != nil {
		return err
	}
	printer.Out = p.Out
	return printer.PrintObject(o)
}

// readMigrationFindings reads the cluster.
func (p *program) readMigrationFindings(c *cobra.Command, f *migrateFlags) (*migrate.Findings, migrate.ClusterAccess, error) {
	connection, err := p.newConnection()
	if err != nil {
		return nil, nil, err
	}
	access, err := migrate.NewClusterAccess(connection.restConfig)
	if err != nil {
		return nil, nil, err
	}
	findings, err := migrate.ReadFindings(c.Context(), access, migrate.ReadQuestion{GantryNamespace: p.gantryNamespace, HelmReleaseOfGantry: f.helmRelease})
	return findings, access, err
}

// checkMigration says what the cluster has and needs.
func (p *program) checkMigration(c *cobra.Command, f *migrateFlags) error {
	findings, _, err := p.readMigrationFindings(c, f)
	if err != nil {
		return err
	}
	r := migrate.BuildCheckReport(findings)
	p.keepWorstResult(r.Result)
	if p.isStructuredOutput() {
		return p.printStructured(r)
	}
	_, err = fmt.Fprint(p.Out, migrate.FormatCheckReport(r))
	return err
}

// prepareMigration makes the changes that restart nothing, each after a question. What was declined
// is left, so that the exit status says so.
func (p *program) prepareMigration(c *cobra.Command, f *migrateFlags) error {
	findings, access, err := p.readMigrationFindings(c, f)
	if err != nil {
		return err
	}
	for _, right := range findings.MissingRights {
		p.keepWorstResult(report.ResultUnknown)
		fmt.Fprintf(p.ErrOut, "not seen, because you have no right to %s\n", right)
	}
	actions := findings.ListActions()
	if len(actions) == 0 {
		fmt.Fprintln(p.Out, "there is nothing to prepare; kubectl gantry migrate --check says what to do next")
	}
	answers := bufio.NewScanner(c.InOrStdin())
	for i := range actions {
		fmt.Fprintf(p.Out, "%s\n  %s\n", actions[i].Text, actions[i].Change)
		if !f.isConfirmed && !p.askForConfirmation(answers) {
			p.keepWorstResult(report.ResultNotWell)
			continue
		}
		if err := actions[i].Apply(c.Context(), access); err != nil {
			return err
		}
		fmt.Fprintln(p.Out, "  done")
	}
	return nil
}

// askForConfirmation asks, and reports whether the answer is yes. No answer is a no.
func (p *program) askForConfirmation(answers *bufio.Scanner) bool {
	fmt.Fprint(p.Out, "  Do it? [y/N] ")
	if !answers.Scan() {
		fmt.Fprintln(p.Out)
		return false
	}
	answer := strings.ToLower(strings.TrimSpace(answers.Text()))
	return answer == "y" || answer == "yes"
}
