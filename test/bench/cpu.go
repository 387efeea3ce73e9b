package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// cpuTimeByProgram is the processor time of each program of a lab, by name.
type cpuTimeByProgram map[string]time.Duration

// readCPUTimeByProgram returns the processor time so far of the programs below a process. It does
// not count those that have ended.
func readCPUTimeByProgram(root int) cpuTimeByProgram {
	type process struct {
		parent int
		name   string
		time   time.Duration
	}
	all := map[int]process{}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		text, err := os.ReadFile(filepath.Join(d, "stat"))
		if err != nil {
			continue // it has ended
		}
		line, _ := os.ReadFile(filepath.Join(d, "cmdline"))
		name, _, _ := strings.Cut(string(line), "\x00")
		fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
		parent, _ := strconv.Atoi(fields[1]) // the numbers of the fields in proc(5), minus 3
		user, _ := strconv.Atoi(fields[11])
		system, _ := strconv.Atoi(fields[12])
		pid, _ := strconv.Atoi(filepath.Base(d))
		all[pid] = process{parent, filepath.Base(name), time.Duration(user+system) * time.Second / clockTicksPerSecond}
	}
	out := cpuTimeByProgram{}
	for pid, p := range all {
		for up := pid; up > 1; up = all[up].parent {
			if up == root {
				out[p.name] += p.time
				break
			}
		}
	}
	return out
}

// describePerServiceSince lists the processor time since an earlier reading, divided by n, for the
// programs that matter.
func (u cpuTimeByProgram) describePerServiceSince(before cpuTimeByProgram, n int) string {
	var out []string
	for _, name := range []string{"kube-apiserver", "etcd", "controller", "speaker", "kube-proxy", "kube-controller-manager"} {
		out = append(out, fmt.Sprintf("%s %.2f", name, float64((u[name]-before[name]).Microseconds())/1000/float64(n)))
	}
	return strings.Join(out, ", ") + " ms"
}
