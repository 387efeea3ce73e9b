package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// nameKinds are the constants of api/names that users see, by the beginning of their names.
var nameKinds = []struct{ prefix, title, text string }{
	{"Annotation", "Annotations", "Annotations on Services, pools, Nodes and the Secret of the gossip key. Each annotation that begins with `metallb.io/` also has an older spelling, which counts if the newer one is absent."},
	{"Label", "Labels", "Labels that Gantry reads or writes."},
	{"Taint", "Taints", "Taints of Nodes that Gantry reads."},
	{"Condition", "Conditions", "Types of conditions. [reasons.md](reasons.md) lists their Reasons."},
	{"Event", "Events", "Reasons of events, as `kubectl get events` shows them in the column REASON."},
}

// meaningByConstant has the meanings of constants whose comment is about several of them, or about
// the code.
var meaningByConstant = map[string]string{
	"AnnotationRequestedPool":          "On a Service: the name of the pool from which it wants its addresses.",
	"AnnotationLoadBalancerIPs":        "On a Service: the addresses that it wants, separated by commas.",
	"AnnotationSharingKey":             "On a Service: a key. Services with the same key may share an address, if their ports and policies allow it.",
	"AnnotationRotateGossipKey":        "On the Secret of the gossip key, with any value: the controller replaces the key.",
	"AnnotationGossipKeyChangedAt":     "On the Secret of the gossip key: when the controller last changed it.",
	"LabelAppName":                     "On the Pods of Gantry: `gantry`.",
	"LabelComponent":                   "On the Pods of Gantry: `controller` or `speaker`.",
	"LabelConfigurationStateComponent": "On a ConfigurationState: `controller` or `speaker`.",
	"LabelConfigurationStateNode":      "On a ConfigurationState of a speaker: its node.",
	"LabelServiceStatusNode":           "On a ServiceL2Status or ServiceBGPStatus: its node.",
	"LabelServiceName":                 "On a ServiceL2Status or ServiceBGPStatus: the name of the Service.",
	"LabelServiceNamespace":            "On a ServiceL2Status or ServiceBGPStatus: the namespace of the Service.",
	"LabelExcludeNode":                 "On a Node: the node announces nothing.",
	"AnnotationLiftWithheld":           "On an IPAddressPool: ends the cool-down and the quarantine of addresses, once for each value. The value is `all`, or a list of addresses, CIDRs and ranges, separated by commas.",
	"AnnotationDrainNode":              "On a Node, with any value: its speaker hands its addresses over, and takes no new ones.",
	"LabelBGPPeerOfSession":            "On a BGPSession: the name of its BGPPeer.",
	"ConditionControllerConfigValid":   "On the ConfigurationState of the controller: the whole configuration is understood.",
	"ConditionSpeakerConfigValid":      "On the ConfigurationState of a speaker: the whole configuration is understood.",
	"EventAllocated":                   "A Service got an address.",
	"EventAllocationFailed":            "A Service gets no address, or not the one that it asks for.",
	"EventLoadBalancerFailed":          "A field or an annotation of a Service about its address cannot be read.",
	"EventClearAssignment":             "A Service gives an address up.",
	"EventNodeAssigned":                "A node begins to announce a Service.",
	"EventAnnounceFailed":              "A Service or a Node is not announced, or another host answers for an address.",
	"TaintOutOfService":                "On a Node: the node hands over its addresses.",
}

// constantWithComment is a string constant.
type constantWithComment struct{ name, value, comment string }

// writeNamesPage returns the page of the words that users see in objects.
func writeNamesPage(root string) (string, error) {
	constants, err := readConstants(filepath.Join(root, "api", "names", "names.go"))
	if err != nil {
		return "", err
	}
	var out strings.Builder
	out.WriteString("# Annotations, labels, conditions and events\n" + generatedNote("api/names/names.go"))
	for _, k := range nameKinds {
		var rows strings.Builder
		for _, c := range constants {
			if rest, ok := strings.CutPrefix(c.name, k.prefix); ok && rest != "" && !strings.HasSuffix(c.name, "EventSource") {
				fmt.Fprintf(&rows, "| `%s` | %s |\n", c.value, tableCell(describeConstant(c, constants)))
			}
		}
		if rows.Len() > 0 {
			fmt.Fprintf(&out, "\n## %s\n%s\n\n| name | meaning |\n|---|---|\n%s", k.title, k.text, rows.String())
		}
	}
	return out.String(), nil
}

// describeConstant returns what a constant means. The comment begins with the name of the constant.
func describeConstant(c constantWithComment, constants []constantWithComment) string {
	if meaning, ok := meaningByConstant[c.name]; ok {
		return meaning
	}
	if newer, isOld := strings.CutSuffix(c.name, "Old"); isOld {
		for _, n := range constants {
			if n.name == newer {
				return "The older spelling of `" + n.value + "`."
			}
		}
	}
	text := strings.TrimPrefix(strings.TrimPrefix(c.comment, c.name+" "), c.name+": ")
	if text != c.comment && text != "" {
		text = strings.ToUpper(text[:1]) + text[1:]
	}
	return withValuesOfConstants(text, constants)
}

// readConstants returns the string constants of a file in their order. A comment counts for its
// constant and for those after it without a comment, up to an empty line.
func readConstants(path string) ([]constantWithComment, error) {
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, path, nil, parser.ParseComments)
	if err != nil {
		return nil, err
	}
	var out []constantWithComment
	for _, d := range file.Decls {
		group, ok := d.(*ast.GenDecl)
		if !ok || group.Tok != token.CONST {
			continue
		}
		comment := group.Doc.Text()
		for _, s := range group.Specs {
			v := s.(*ast.ValueSpec)
			if v.Doc != nil {
				comment = v.Doc.Text()
			}
			if lit, ok := v.Values[0].(*ast.BasicLit); ok && lit.Kind == token.STRING {
				value, err := strconv.Unquote(lit.Value)
				if err != nil {
					return nil, err
				}
				out = append(out, constantWithComment{v.Names[0].Name, value, comment})
			}
		}
	}
	return out, nil
}

// withValuesOfConstants replaces the names of constants in a text by their values, because readers
// of the page do not know the code.
func withValuesOfConstants(text string, constants []constantWithComment) string {
	valueByName := map[string]string{}
	for _, c := range constants {
		valueByName[c.name] = c.value
	}
	return regexp.MustCompile(`\b[A-Z][A-Za-z0-9]+\b`).ReplaceAllStringFunc(text, func(word string) string {
		if value, ok := valueByName[word]; ok {
			return "`" + value + "`"
		}
		return word
	})
}
