package router

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// birdPath is the path of BIRD in Debian.
const birdPath = "/usr/sbin/bird"

// birdRoutingSoftware runs the one daemon of BIRD 2.
type birdRoutingSoftware struct{}

func birdSocket(dir string) string { return filepath.Join(dir, "bird.ctl") }

func (birdRoutingSoftware) daemonNames() []string { return []string{"bird"} }

func (birdRoutingSoftware) writeConfig(c Config) error {
	if err := os.WriteFile(filepath.Join(c.Dir, fakeGroupFileName), []byte("root:x:0:\n"), 0o644); err != nil {
		return err
	}
	path := filepath.Join(c.Dir, "bird.conf")
	if err := os.WriteFile(path, []byte(c.ConfigText), 0o644); err != nil {
		return err
	}
	if out, err := exec.Command(birdPath, "-p", "-c", path).CombinedOutput(); err != nil {
		return fmt.Errorf("reading the configuration: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

func (birdRoutingSoftware) daemonCommand(c Config, _ string) []string {
	return []string{birdPath, "-f", "-c", filepath.Join(c.Dir, "bird.conf"), "-s", birdSocket(c.Dir)}
}

func (birdRoutingSoftware) checkDaemonReady(ctx context.Context, c Config, _ string) error {
	return checkSocketListening(ctx, birdSocket(c.Dir))
}

func (birdRoutingSoftware) loadRouterConfig(ctx context.Context, c Config) error {
	return RouterConsole{c.Kind, c.Dir}.loadBIRDConfigFile(ctx, "bird.conf")
}
