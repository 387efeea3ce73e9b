package lab

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// reapOrphans waits for dead processes whose parents ended before them, which is the duty of
// process 1. The supervisor's own children are waited for elsewhere, without delay. So a child that
// is dead in two checks in a row is an orphan.
func (s *supervisor) reapOrphans() {
	seen := map[int]bool{}
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-time.After(orphanCheckInterval):
		}
		dead := findEndedChildrenOfInit()
		for pid := range dead {
			if seen[pid] {
				_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
			}
		}
		seen = dead
	}
}

// orphanCheckInterval is the time between two checks for orphans. A dead process costs only its
// entry in the process table, so there is no hurry.
const orphanCheckInterval = 2 * time.Second

// findEndedChildrenOfInit returns the children of process 1 that have ended.
func findEndedChildrenOfInit() map[int]bool {
	out := map[int]bool{}
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if state, parent := readProcessStateAndParent(pid); state == "Z" && parent == 1 {
			out[pid] = true
		}
	}
	return out
}

// readProcessState returns the state of a process as in proc(5): R is running or runnable, S
// sleeps, Z is dead. It returns "" if the process does not exist.
func readProcessState(pid int) string {
	state, _ := readProcessStateAndParent(pid)
	return state
}

func readProcessStateAndParent(pid int) (state string, parent int) {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, _ := strings.Cut(string(text), ") ") // after the name, which may contain any character
	_, _ = fmt.Sscan(rest, &state, &parent)
	return state, parent
}
