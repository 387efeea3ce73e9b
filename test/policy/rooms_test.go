package policy

import (
	"strings"
	"testing"
)

// controllerImports lists which packages of the controller import each other, and why. They share
// the published configuration, and nothing else: what one of them does can be read without the
// others.
var controllerImports = map[string]string{
	"controller/announcedcondition controller/configurationreader": "the condition explains the published configuration",
	"controller/announcedcondition controller/events":              "a change of the condition is an event",
	"controller/assign controller/allocate":                        "the worker carries out Decisions",
	"controller/assign controller/configurationreader":             "the worker decides by the published configuration",
	"controller/assign controller/events":                          "an assignment is an event",
	"controller/assign controller/pendingwrites":                   "the worker keeps the list of its unfinished writes",
	"controller/leaderlock controller/assign":                      "the worker tells waiting Services how long no controller led",
	"controller/validcondition controller/configurationreader":     "the condition has the published Problems",
}

func TestControllerPackagesImportOnlyListedOnes(t *testing.T) {
	unused := map[string]bool{}
	for pair := range controllerImports {
		unused[pair] = true
	}
	for _, f := range parseSources(t) {
		if f.isTest || f.dir == "controller" || !isInOrBelow(f.dir, "controller") {
			continue
		}
		for _, p := range f.importPaths() {
			to, ours := strings.CutPrefix(p, modulePath)
			if !ours || !isInOrBelow(to, "controller") {
				continue
			}
			pair := f.dir + " " + to
			if _, listed := controllerImports[pair]; !listed {
				t.Errorf("%s imports %s: pass it a value or a function in controller/main.go, or list the import here with the reason", f.path, to)
			}
			delete(unused, pair)
		}
	}
	for pair := range unused {
		t.Errorf("no file needs the import %s: delete it from controllerImports", pair)
	}
}
