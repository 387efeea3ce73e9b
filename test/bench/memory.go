package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// mostMemory is what a speaker with 10,000 addresses and 2 peers may take, in bytes.
const mostMemory = 80e6

// resident is what /proc says of a process, in bytes: all of its memory, its own, what it maps of files (its binary), and the most
// that it ever had.
type resident struct{ all, own, files, peak int }

// slim prints the memory of the largest speaker, and refuses one that takes too much.
func slim(what string) error {
	r, err := memory()
	if err != nil {
		return err
	}
	const mb = 1e6
	fmt.Printf("%-64s %.1f MB: %.1f MB of its own, %.1f MB of its binary; %.1f MB at most\n", what, float64(r.all)/mb, float64(r.own)/mb, float64(r.files)/mb, float64(r.peak)/mb)
	if r.all > mostMemory {
		return fmt.Errorf("%s: %d bytes are more than %.0f", what, r.all, float64(mostMemory))
	}
	return nil
}

// memory returns the resident memory of the speakers, the largest.
func memory() (resident, error) {
	var most resident
	files, err := filepath.Glob("/proc/[0-9]*/status")
	if err != nil {
		return most, err
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil || !strings.HasPrefix(string(text), "Name:\tspeaker\n") {
			continue
		}
		var r resident
		for name, to := range map[string]*int{"VmRSS:": &r.all, "RssAnon:": &r.own, "RssFile:": &r.files, "VmHWM:": &r.peak} {
			if _, after, ok := strings.Cut(string(text), name); ok {
				if _, err := fmt.Sscan(after, to); err != nil {
					return most, fmt.Errorf("reading %s: %w", f, err)
				}
				*to <<= 10
			}
		}
		if r.all > most.all {
			most = r
		}
	}
	if most.all == 0 {
		return most, fmt.Errorf("no speaker is seen in /proc")
	}
	return most, nil
}
