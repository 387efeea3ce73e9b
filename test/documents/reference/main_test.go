package main

import (
	"os"
	"path/filepath"
	"testing"
)

func TestReferencePagesAreCurrent(t *testing.T) {
	const root = "../../.."
	directory := t.TempDir()
	if err := writeReferences(root, directory); err != nil {
		t.Fatal(err)
	}
	for _, r := range references {
		want, err := os.ReadFile(filepath.Join(directory, r.fileName))
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := os.ReadFile(filepath.Join(root, "docs", r.fileName)); string(got) != string(want) {
			t.Errorf("docs/%s does not say what the code says: run `make generate`", r.fileName)
		}
	}
}
