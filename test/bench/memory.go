package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// maxSpeakerMemoryBytes limits the resident memory of a speaker with 10,000 addresses and 2 peers,
// in bytes.
const maxSpeakerMemoryBytes = 80e6

// residentMemory is the resident memory of a process in bytes, as in /proc: all of it, the
// anonymous part, the part mapped from files (its binary), and the maximum of all so far.
type residentMemory struct{ totalBytes, anonymousBytes, fileMappedBytes, peakBytes int }

// checkSpeakerMemory prints the memory of the largest speaker, and returns an error if it is too
// much.
func checkSpeakerMemory(what string) error {
	r, err := readMemoryOfLargestSpeaker()
	if err != nil {
		return err
	}
	const mb = 1e6
	fmt.Printf("%-64s %.1f MB: %.1f MB of its own, %.1f MB of its binary; %.1f MB at most\n", what, float64(r.totalBytes)/mb, float64(r.anonymousBytes)/mb, float64(r.fileMappedBytes)/mb, float64(r.peakBytes)/mb)
	if r.totalBytes > maxSpeakerMemoryBytes {
		return fmt.Errorf("%s: %d bytes are more than %.0f", what, r.totalBytes, float64(maxSpeakerMemoryBytes))
	}
	return nil
}

// readMemoryOfLargestSpeaker returns the resident memory of the largest speaker.
func readMemoryOfLargestSpeaker() (residentMemory, error) {
	var most residentMemory
	files, err := filepath.Glob("/proc/[0-9]*/status")
	if err != nil {
		return most, err
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil || !strings.HasPrefix(string(text), "Name:\tspeaker\n") {
			continue
		}
		var r residentMemory
		for name, to := range map[string]*int{"VmRSS:": &r.totalBytes, "RssAnon:": &r.anonymousBytes, "RssFile:": &r.fileMappedBytes, "VmHWM:": &r.peakBytes} {
			if _, after, ok := strings.Cut(string(text), name); ok {
				if _, err := fmt.Sscan(after, to); err != nil {
					return most, fmt.Errorf("reading %s: %w", f, err)
				}
				*to <<= 10
			}
		}
		if r.totalBytes > most.totalBytes {
			most = r
		}
	}
	if most.totalBytes == 0 {
		return most, fmt.Errorf("/proc has no speaker")
	}
	return most, nil
}
