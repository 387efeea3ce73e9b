package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// metric is a metric that a program exports.
type metric struct {
	name, help, kind string
	labels           []string
	directory        string
}

// metricPrograms are the directories of the programs, and how the page names them.
var metricPrograms = []struct{ directory, title, text string }{
	{"internal", "Both programs", "The controller and every speaker export these metrics."},
	{"controller", "Controller", "The controller exports these metrics on port 7472. The metrics about pools and Services come only from the controller that leads."},
	{"speaker", "Speaker", "Each speaker exports these metrics on port 7473."},
}

// writeMetricsPage returns the page of the metrics that are declared in the code.
func writeMetricsPage(root string) (string, error) {
	metrics, err := readMetrics(root)
	if err != nil {
		return "", err
	}
	var out strings.Builder
	out.WriteString("# Metrics\n" + generatedNote("the declarations of the metrics") + `
Names that begin with ` + "`metallb_`" + ` are those of MetalLB, so its dashboards and alerts work. Some of them end in
` + "`_total`" + ` and are gauges all the same, as they are in MetalLB. Labels are bounded by what you configure: pools, peers,
Reasons. The labels ` + "`ip` and `service`" + ` have one value for each address that the node itself holds or announces.
[security.md](security.md#metrics) says who may read the metrics. Both programs also export the metrics of the Go runtime,
of the process, and of the library controller-runtime (` + "`leader_election_master_status`, `rest_client_*`, `workqueue_*`" + `).
`)
	for _, p := range metricPrograms {
		fmt.Fprintf(&out, "\n## %s\n%s\n\n| metric | type | labels | what it is |\n|---|---|---|---|\n", p.title, p.text)
		for _, m := range metrics {
			if strings.HasPrefix(m.directory, p.directory) {
				labels := ""
				if len(m.labels) > 0 {
					labels = "`" + strings.Join(m.labels, "`, `") + "`"
				}
				fmt.Fprintf(&out, "| `%s` | %s | %s | %s |\n", m.name, m.kind, labels, tableCell(m.help))
			}
		}
	}
	return out.String(), nil
}

// readMetrics returns the metrics of all packages, by name.
func readMetrics(root string) ([]metric, error) {
	var out []metric
	for _, p := range metricPrograms {
		err := filepath.WalkDir(filepath.Join(root, p.directory), func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.IsDir() {
				return err
			}
			relative, err := filepath.Rel(root, path)
			if err != nil {
				return err
			}
			found, err := readMetricsOfPackage(path, relative)
			out = append(out, found...)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	slices.SortFunc(out, func(a, b metric) int { return strings.Compare(a.name, b.name) })
	if len(out) < 40 {
		return nil, fmt.Errorf("%d metrics: the programs have more", len(out))
	}
	return out, nil
}

// metricPackage is what the declarations of a package say about its metrics.
type metricPackage struct {
	// labelsByVariable are the lists of labels that have a name, stringByConstant the constants.
	labelsByVariable map[string][]string
	stringByConstant map[string]string
	// prefixByFunction are the functions that declare a metric, with the beginning of its name and
	// its labels.
	prefixByFunction map[string]metric
	// kindByVariable are the types of metrics with a variable of their own. kindsOfOthers are those
	// of the remaining calls, whose metric is in another variable.
	kindByVariable map[string]string
	kindsOfOthers  []string
	metrics        []metric
	// variableByMetric is the variable of a metric.
	variableByMetric map[string]string
}

func readMetricsOfPackage(directory, relative string) ([]metric, error) {
	paths, err := filepath.Glob(filepath.Join(directory, "*.go"))
	if err != nil {
		return nil, err
	}
	p := metricPackage{map[string][]string{}, map[string]string{}, map[string]metric{}, map[string]string{}, nil, nil, map[string]string{}}
	var files []*ast.File
	for _, path := range paths {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(file.Imports, func(i *ast.ImportSpec) bool {
			return i.Path.Value == `"github.com/prometheus/client_golang/prometheus"`
		}) {
			files = append(files, file)
		}
	}
	for _, file := range files {
		p.readNamedValues(file)
	}
	for _, file := range files {
		p.readDeclarations(file)
		p.readKinds(file)
	}
	for i := range p.metrics {
		m := &p.metrics[i]
		m.directory = relative
		if m.kind != "" {
			continue
		}
		if m.kind = p.kindOfVariable(p.variableByMetric[m.name]); m.kind == "" {
			return nil, fmt.Errorf("%s: the type of the metric %s is not plain: use its variable in MustNewConstMetric", relative, m.name)
		}
	}
	return p.metrics, nil
}

// kindOfVariable returns the type of the metric in a variable. A variable without a call of its own
// has the type of the calls for metrics in other variables, if these agree.
func (p *metricPackage) kindOfVariable(name string) string {
	if kind := p.kindByVariable[name]; kind != "" {
		return kind
	}
	if kinds := slices.Compact(slices.Sorted(slices.Values(p.kindsOfOthers))); len(kinds) == 1 {
		return kinds[0]
	}
	return ""
}

// readNamedValues reads the lists of labels and the constants that have a name, and the functions
// that declare a metric.
func (p *metricPackage) readNamedValues(file *ast.File) {
	for _, d := range file.Decls {
		switch d := d.(type) {
		case *ast.GenDecl:
			for _, s := range d.Specs {
				v, ok := s.(*ast.ValueSpec)
				if !ok || len(v.Names) != len(v.Values) {
					continue
				}
				for i, value := range v.Values {
					if labels, ok := p.readLabels(value); ok {
						p.labelsByVariable[v.Names[i].Name] = labels
					}
					if text, ok := p.readString(value); ok {
						p.stringByConstant[v.Names[i].Name] = text
					}
				}
			}
		case *ast.FuncDecl:
			ast.Inspect(d, func(n ast.Node) bool {
				if call, ok := n.(*ast.CallExpr); ok && calledFunction(call) == "NewDesc" {
					if sum, ok := call.Args[0].(*ast.BinaryExpr); ok {
						prefix, _ := p.readString(sum.X)
						labels, _ := p.readLabels(call.Args[2])
						p.prefixByFunction[d.Name.Name] = metric{name: prefix, labels: labels}
					}
				}
				return true
			})
		}
	}
}

// readDeclarations reads the metrics of a file.
func (p *metricPackage) readDeclarations(file *ast.File) {
	variable := ""
	ast.Inspect(file, func(n ast.Node) bool {
		if v, ok := n.(*ast.ValueSpec); ok && len(v.Names) == 1 {
			variable = v.Names[0].Name
		}
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		function := calledFunction(call)
		var m metric
		switch {
		case function == "NewDesc" && len(call.Args) == 4:
			m.name, _ = p.readString(call.Args[0])
			m.help, _ = p.readString(call.Args[1])
			m.labels, _ = p.readLabels(call.Args[2])
		case p.prefixByFunction[function].name != "" && len(call.Args) == 2:
			m = p.prefixByFunction[function]
			end, _ := p.readString(call.Args[0])
			m.name += end
			m.help, _ = p.readString(call.Args[1])
		case len(call.Args) > 0:
			m = p.readMetricWithOptions(function, call)
		}
		if m.name != "" && m.help != "" {
			p.variableByMetric[m.name] = variable
			p.metrics = append(p.metrics, m)
		}
		return true
	})
}

// readMetricWithOptions reads a call such as prometheus.NewCounterVec(CounterOpts{...}, labels).
func (p *metricPackage) readMetricWithOptions(function string, call *ast.CallExpr) metric {
	options, ok := call.Args[0].(*ast.CompositeLit)
	if !ok || !strings.HasPrefix(function, "New") {
		return metric{}
	}
	m := metric{}
	for _, kind := range []string{"Counter", "Gauge", "Histogram", "Summary"} {
		if strings.HasPrefix(function, "New"+kind) {
			m.kind = strings.ToLower(kind)
		}
	}
	if m.kind == "" {
		return metric{}
	}
	for _, e := range options.Elts {
		pair, ok := e.(*ast.KeyValueExpr)
		if !ok {
			continue
		}
		switch pair.Key.(*ast.Ident).Name {
		case "Name":
			m.name, _ = p.readString(pair.Value)
		case "Help":
			m.help, _ = p.readString(pair.Value)
		}
	}
	if len(call.Args) > 1 {
		m.labels, _ = p.readLabels(call.Args[1])
	}
	return m
}

// readKinds reads the types from the calls that make the values. In a loop over a map or a list of
// metrics, the type counts for each of them.
func (p *metricPackage) readKinds(file *ast.File) {
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.RangeStmt:
			key, _ := n.Key.(*ast.Ident)
			ast.Inspect(n.Body, func(inner ast.Node) bool {
				if call, ok := inner.(*ast.CallExpr); ok && calledFunction(call) == "MustNewConstMetric" {
					if d, ok := call.Args[0].(*ast.Ident); ok && key != nil && d.Name == key.Name {
						ast.Inspect(n.X, func(x ast.Node) bool {
							if id, ok := x.(*ast.Ident); ok {
								p.kindByVariable[id.Name] = kindOfCall(call)
							}
							return true
						})
					}
				}
				return true
			})
		case *ast.CallExpr:
			if calledFunction(n) == "MustNewConstMetric" {
				if d, ok := n.Args[0].(*ast.Ident); ok {
					p.kindByVariable[d.Name] = kindOfCall(n)
				}
				p.kindsOfOthers = append(p.kindsOfOthers, p.kindOfUnnamed(n)...)
			}
		}
		return true
	})
}

// kindOfUnnamed returns the type of a call whose metric is in a short variable, a parameter or a
// loop's variable.
func (p *metricPackage) kindOfUnnamed(call *ast.CallExpr) []string {
	if d, ok := call.Args[0].(*ast.Ident); ok && strings.HasSuffix(d.Name, "Metric") {
		return nil
	}
	return []string{kindOfCall(call)}
}

func kindOfCall(call *ast.CallExpr) string {
	if s, ok := call.Args[1].(*ast.SelectorExpr); ok {
		return strings.ToLower(strings.TrimSuffix(s.Sel.Name, "Value"))
	}
	return ""
}

// calledFunction returns the name of the function without its package.
func calledFunction(call *ast.CallExpr) string {
	switch f := call.Fun.(type) {
	case *ast.SelectorExpr:
		return f.Sel.Name
	case *ast.Ident:
		return f.Name
	}
	return ""
}

// readString returns the value of a string literal, a constant, or a sum of both.
func (p *metricPackage) readString(e ast.Expr) (string, bool) {
	switch e := e.(type) {
	case *ast.BasicLit:
		if e.Kind == token.STRING {
			text, err := strconv.Unquote(e.Value)
			return text, err == nil
		}
	case *ast.Ident:
		text, ok := p.stringByConstant[e.Name]
		return text, ok
	case *ast.BinaryExpr:
		x, okX := p.readString(e.X)
		y, okY := p.readString(e.Y)
		return x + y, okX && okY
	}
	return "", false
}

// readLabels returns the strings of a literal list, or of a variable with one.
func (p *metricPackage) readLabels(e ast.Expr) ([]string, bool) {
	switch e := e.(type) {
	case *ast.Ident:
		labels, ok := p.labelsByVariable[e.Name]
		return labels, ok
	case *ast.CompositeLit:
		var out []string
		for _, x := range e.Elts {
			text, ok := p.readString(x)
			if !ok {
				return nil, false
			}
			out = append(out, text)
		}
		return out, len(out) > 0
	}
	return nil, false
}
