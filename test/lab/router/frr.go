package router

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
)

// frrDir is the directory of FRR's daemons in Debian.
const frrDir = "/usr/lib/frr/"

// frrRoutingSoftware runs zebra, staticd, bfdd and bgpd with one configuration for all, as Debian's
// service does.
type frrRoutingSoftware struct{}

func (frrRoutingSoftware) daemonNames() []string { return []string{"zebra", "staticd", "bfdd", "bgpd"} }

func (frrRoutingSoftware) writeConfig(c Config) error {
	// The daemons demand that their user is in the group frrvty: here that is another name of
	// root's group.
	if err := os.WriteFile(filepath.Join(c.Dir, fakeGroupFileName), []byte("root:x:0:\nfrr:x:0:\nfrrvty:x:0:\n"), 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(c.Dir, "empty.conf"), nil, 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(c.Dir, "frr.conf"), []byte(c.ConfigText), 0o644)
}

func (frrRoutingSoftware) daemonCommand(c Config, program string) []string {
	in := func(name string) string { return filepath.Join(c.Dir, name) }
	line := []string{frrDir + program, "-u", "root", "-g", "root", "-f", in("empty.conf"), "-i", in(program + ".pid"),
		"-z", in("zserv.api"), "--vty_socket", c.Dir, "-P", "0", "--log", "stdout"}
	if program == "bfdd" {
		line = append(line, "--bfdctl", in("bfdd.sock"))
	}
	return line
}

func (frrRoutingSoftware) checkDaemonReady(ctx context.Context, c Config, program string) error {
	// a daemon that connects to zebra too early tries again after ten seconds
	if program == "zebra" {
		if err := checkSocketListening(ctx, filepath.Join(c.Dir, "zserv.api")); err != nil {
			return err
		}
	}
	return checkSocketListening(ctx, filepath.Join(c.Dir, program+".vty"))
}

func (frrRoutingSoftware) loadRouterConfig(ctx context.Context, c Config) error {
	_, err := RouterConsole{c.Kind, c.Dir}.runProgram(ctx, "vtysh", "--vty_socket", c.Dir, "-f", filepath.Join(c.Dir, "frr.conf"))
	return err
}

// checkSocketListening returns an error if no process listens on a socket.
func checkSocketListening(ctx context.Context, socket string) error {
	var d net.Dialer
	s, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return fmt.Errorf("no process is listening yet: %w", err)
	}
	return s.Close()
}
