package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestFindParallelTests(t *testing.T) {
	const source = `package x

import "testing"

func TestAlone(t *testing.T) {
	t.Run("part", func(t *testing.T) { t.Parallel() })
}

func TestBesideOthers(t *testing.T) {
	t.Parallel()
	t.Run("part", func(t *testing.T) {})
}

func helper(t *testing.T) { t.Parallel() }
`
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "x_test.go"), []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := findParallelTests(dir)
	if err != nil || !slices.Equal(got, []string{"TestBesideOthers"}) {
		t.Errorf("the tests that run beside others are %v (%v), want only the one that calls t.Parallel itself", got, err)
	}
}

// TestPassedTestSaysWhatItCouldNotJudge checks that the line is kept with the name of the test.
func TestPassedTestSaysWhatItCouldNotJudge(t *testing.T) {
	tally := testTally{outputByUnfinishedTest: map[string]*strings.Builder{}, hasFailedTestByPackage: map[string]bool{}}
	for _, e := range []goTestEvent{
		{Action: "output", Package: "p", Test: "TestMoves/one", Output: "    x_test.go:3: not judged: processes waited 80ms\n"},
		{Action: "output", Package: "p", Test: "TestMoves/two", Output: "    x_test.go:3: moved\n"},
		{Action: "pass", Package: "p", Test: "TestMoves/one"},
		{Action: "pass", Package: "p", Test: "TestMoves/two"},
	} {
		tally.countAndPrintGoTestEvent(e)
	}
	if want := []string{"not judged: p TestMoves/one: processes waited 80ms"}; !slices.Equal(tally.notJudgedLines, want) {
		t.Errorf("the lines are %q, want %q", tally.notJudgedLines, want)
	}
}
