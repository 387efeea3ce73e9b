package lab

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// reapOrphans takes note of processes whose parents ended before them, which is the duty of process 1. A process that is the
// supervisor's own child is waited for elsewhere, at once: what is dead at two looks in a row is nobody else's.
func (s *supervisor) reapOrphans() {
	seen := map[int]bool{}
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-time.After(reapInterval):
		}
		dead := orphanedZombies()
		for pid := range dead {
			if seen[pid] {
				_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
			}
		}
		seen = dead
	}
}

// reapInterval is how often orphans are looked for: dead ones cost nothing but their entry.
const reapInterval = 2 * time.Second

// orphanedZombies are the children of process 1 that have ended.
func orphanedZombies() map[int]bool {
	out := map[int]bool{}
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if state, parent := processStat(pid); state == "Z" && parent == 1 {
			out[pid] = true
		}
	}
	return out
}

// processState is a process's state as proc(5) has it: R runs or could, S waits, Z is dead; empty is gone.
func processState(pid int) string {
	state, _ := processStat(pid)
	return state
}

func processStat(pid int) (state string, parent int) {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, _ := strings.Cut(string(text), ") ") // after the name, which may hold anything
	_, _ = fmt.Sscan(rest, &state, &parent)
	return state, parent
}
