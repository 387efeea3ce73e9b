// Command kubectl-gantry says whether Gantry and its Services work, and why not. kubectl runs it as
// "kubectl gantry"; it also runs alone. It works with the rights of the user, and changes nothing
// but what the commands drain, undrain, move, release, retire and migrate name. The command
// preflight creates Pods for a moment.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/gantry-lb/gantry/cmd/kubectl-gantry/command"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	status := command.RunProgram(ctx, command.ProcessEnvironment{ProgramPath: os.Args[0], Args: os.Args[1:], Out: os.Stdout, ErrOut: os.Stderr, Now: time.Now, LookupVariable: os.LookupEnv})
	stop()
	os.Exit(status)
}
