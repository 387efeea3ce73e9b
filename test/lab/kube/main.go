// Command kube is the lab's control plane in one binary. Like busybox it acts as the program it is
// called by, through a link named kube-apiserver, etcd and so on, or as the one its first argument
// names: one link step instead of six, and one copy of the libraries that they share.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	// the JSON log format, as the released binaries have it
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	kubectl "k8s.io/kubectl/pkg/cmd"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
)

// mainFuncByProgramName maps the name of each program to what runs it and ends the process.
var mainFuncByProgramName = map[string]func(){
	"etcd":                    func() { etcdmain.Main(os.Args) },
	"kube-apiserver":          func() { runCobraCommandAndExit(apiserver.NewAPIServerCommand()) },
	"kube-controller-manager": func() { runCobraCommandAndExit(controllermanager.NewControllerManagerCommand()) },
	"kube-scheduler":          func() { runCobraCommandAndExit(scheduler.NewSchedulerCommand()) },
	"kube-proxy":              func() { runCobraCommandAndExit(proxy.NewProxyCommand()) },
	"kubectl":                 func() { runCobraCommandAndExit(kubectl.NewDefaultKubectlCommand()) },
}

func runCobraCommandAndExit(c *cobra.Command) { os.Exit(cli.Run(c)) }

func main() {
	name := filepath.Base(os.Args[0])
	if _, ok := mainFuncByProgramName[name]; !ok && len(os.Args) > 1 {
		os.Args = os.Args[1:]
		name = filepath.Base(os.Args[0])
	}
	run, ok := mainFuncByProgramName[name]
	if !ok {
		known := make([]string, 0, len(mainFuncByProgramName))
		for n := range mainFuncByProgramName {
			known = append(known, n)
		}
		sort.Strings(known)
		fmt.Fprintf(os.Stderr, "kube: no program %q: call it as, or with the first argument, one of %s\n", name, strings.Join(known, ", "))
		os.Exit(2)
	}
	run()
}
