// Command demo shows Gantry on a real cluster on this machine: a Service gets an address, a client
// on the LAN reaches it, the node that holds the address dies, and the client still reaches it.
// With KEEP=1 in the environment the cluster stays up.
package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/test/cluster"
	"github.com/gantry-lb/gantry/test/lab"
)

func main() {
	if err := lab.ReexecInUserNamespaceUnlessRoot(); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := runDemo(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func printHeading(format string, args ...any) { fmt.Printf("\n== "+format+"\n", args...) }

func runDemo(ctx context.Context) error {
	dir := lab.LabDirectory("demo")
	printHeading("starting a cluster of 3 nodes, a client and a router")
	up := exec.CommandContext(ctx, filepath.Join(lab.RepositoryRoot(), "bin", "lab"), "up", "--nodes", "3", "--name", "demo")
	up.Stdout, up.Stderr = os.Stdout, os.Stderr
	up.Cancel = func() error { return up.Process.Signal(syscall.SIGTERM) }
	if err := up.Run(); err != nil {
		return fmt.Errorf("starting the lab: %w", err)
	}
	l, err := lab.AttachToLab(ctx, dir)
	if err != nil {
		return err
	}
	keep := false
	defer func() {
		if !keep {
			l.Close()
		}
	}()
	s, err := cluster.NewClusterOfRunningLab(l)
	if err != nil {
		return err
	}
	printHeading("installing Gantry: kubectl apply -k config/continuity")
	if err := s.InstallGantryOverlay(ctx, "continuity"); err != nil {
		return err
	}
	if err := runAndPrintKubectl(ctx, s, "-n", "metallb-system", "get", "pods", "-o", "wide"); err != nil {
		return err
	}
	printHeading("applying a pool, an advertisement and a Service")
	if err := s.ApplyManifests(ctx, cluster.FirstPoolAndL2AdvertisementManifest+"---\n"+cluster.ExampleServiceAndDeploymentManifest); err != nil {
		return err
	}
	address, err := s.AwaitFirstAddressOfService(ctx, "tekton-pipelines", "tekton-dashboard")
	if err != nil {
		return err
	}
	url := fmt.Sprintf("http://%s:9097/", address)
	body, err := s.FetchURLUntilSuccess(ctx, "client", url)
	if err != nil {
		return err
	}
	if err := runAndPrintKubectl(ctx, s, "-n", "tekton-pipelines", "get", "svc"); err != nil {
		return err
	}
	printHeading("a client on the LAN fetches %s", url)
	fmt.Print(body)
	if err := drainHolderWhileConnectionIsOpen(ctx, s, url); err != nil {
		return err
	}
	if err := killHolderWhileClientSendsRequests(ctx, s, url); err != nil {
		return err
	}
	if os.Getenv("KEEP") == "" {
		return nil
	}
	keep = true
	printHeading("the cluster stays up; continue with:\n" +
		"export KUBECONFIG=" + s.Kubeconfig() + "\n" +
		"bin/lab --name demo kubectl get svc,ipaddresspools,servicel2statuses -A\n" +
		"bin/lab --name demo shell client curl -s " + url + "\n" +
		"bin/lab --name demo down")
	return nil
}

// drainHolderWhileConnectionIsOpen drains the node that holds the address while the client sends
// requests over one connection.
func drainHolderWhileConnectionIsOpen(ctx context.Context, s *cluster.Cluster, url string) error {
	holder, err := s.AwaitSingleAnnouncingNode(ctx, "tekton-dashboard", "")
	if err != nil {
		return err
	}
	printHeading("%s holds the address; the client keeps a TCP connection open; now %s is drained", holder, holder)
	kept, err := s.OpenKeptConnections(ctx, "client", []string{url}, 1)
	if err != nil {
		return err
	}
	if err := runAndPrintKubectl(ctx, s, "annotate", "node", holder, names.AnnotationDrainNode+"="); err != nil {
		return err
	}
	next, err := s.AwaitSingleAnnouncingNode(ctx, "tekton-dashboard", holder)
	if err != nil {
		return err
	}
	if err := kept.AwaitMoreAnswersOnEach(ctx); err != nil {
		return err
	}
	failures, longest := kept.CloseAndListFailures()
	if len(failures) > 0 {
		return fmt.Errorf("the connection ended: %w", failures[0])
	}
	printHeading("%s took over, and the connection is still open; the longest time between two answers was %d ms", next, longest/time.Millisecond)
	return runAndPrintKubectl(ctx, s, "annotate", "node", holder, names.AnnotationDrainNode+"-")
}

// killHolderWhileClientSendsRequests kills the node that holds the address while the client sends
// requests.
func killHolderWhileClientSendsRequests(ctx context.Context, s *cluster.Cluster, url string) error {
	holder, err := s.AwaitSingleAnnouncingNode(ctx, "tekton-dashboard", "")
	if err != nil {
		return err
	}
	printHeading("%s holds the address; the client sends 50 requests per second; now the power of %s fails", holder, holder)
	stream := s.StartConnectionStream(ctx, "client", url, 50)
	if err := stream.AwaitMoreAnswers(ctx, 25); err != nil {
		return err
	}
	diedAt := time.Now()
	if err := s.KillNode(ctx, holder); err != nil {
		return err
	}
	next, err := s.AwaitSingleAnnouncingNode(ctx, "tekton-dashboard", holder)
	if err != nil {
		return err
	}
	if err := stream.AwaitMoreAnswers(ctx, 250); err != nil {
		return err
	}
	all := stream.StopAndListOutcomes()
	early := diedAt.Add(500 * time.Millisecond)
	lostEarly, earlyCount, _ := cluster.CountFailedConnections(all, diedAt, early)
	lost, count, _ := cluster.CountFailedConnections(all, early, time.Now())
	printHeading("%s took over; the client waited at most %d ms for an answer", next, stream.StopAndAwaitLateAnswers().LongestTimeWithoutAnswer/time.Millisecond)
	fmt.Printf("After the first half second, %d of %d requests were answered, although Kubernetes does not know yet that the Pod on\n"+
		"%s is dead. In the first half second it were %d of %d.\n", count-lost, count, holder, earlyCount-lostEarly, earlyCount)
	return nil
}

// runAndPrintKubectl runs kubectl and prints the command and its output.
func runAndPrintKubectl(ctx context.Context, s *cluster.Cluster, args ...string) error {
	fmt.Println("$ kubectl", strings.Join(args, " "))
	out, err := s.RunKubectl(ctx, "", args...)
	fmt.Print(out)
	return err
}
