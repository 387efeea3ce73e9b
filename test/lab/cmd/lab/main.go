// Command lab brings up a Kubernetes cluster in network namespaces of this machine, for trying
// Gantry out.
package main

import "github.com/gantry-lb/gantry/test/lab"

func main() {
	lab.RunAsLabPartIfRequested()
	lab.RunCommandLine()
}
