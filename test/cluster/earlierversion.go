package cluster

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/gantry-lb/gantry/test/lab"
)

// earlierVersionCommit is the commit of the first version that was released.
const earlierVersionCommit = "4ed98b1"

// EarlierVersion is the first released version of Gantry, built from the history of the repository.
type EarlierVersion struct {
	// BinDir has its controller and its speaker.
	BinDir string
	// SourceDir has its source, with the directory config.
	SourceDir string
}

// BuildEarlierVersion extracts and builds the earlier version in dir. It needs the history of the
// repository.
func BuildEarlierVersion(ctx context.Context, dir string) (*EarlierVersion, error) {
	v := &EarlierVersion{BinDir: filepath.Join(dir, "bin"), SourceDir: filepath.Join(dir, "source")}
	if err := os.MkdirAll(v.SourceDir, 0o755); err != nil {
		return nil, err
	}
	archive, err := exec.CommandContext(ctx, "git", "-C", lab.RepositoryRoot(), "archive", earlierVersionCommit).Output()
	if err != nil {
		return nil, fmt.Errorf("the repository lacks the commit %s: fetch its history: %w", earlierVersionCommit, err)
	}
	extract := exec.CommandContext(ctx, "tar", "-x", "-C", v.SourceDir)
	extract.Stdin = bytes.NewReader(archive)
	if out, err := extract.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("extracting the commit %s: %w: %s", earlierVersionCommit, err, out)
	}
	build := exec.CommandContext(ctx, "go", "build", "-o", v.BinDir+"/", "./controller", "./speaker")
	build.Dir, build.Env = v.SourceDir, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("building the commit %s: %w: %s", earlierVersionCommit, err, out)
	}
	return v, nil
}

// InstallEarlierVersion applies the manifests of the earlier version and waits until every Pod of
// it is ready. The lab has to run with its programs.
func (s *Cluster) InstallEarlierVersion(ctx context.Context, v *EarlierVersion) error {
	if _, err := s.RunKubectl(ctx, "", "apply", "-k", filepath.Join(v.SourceDir, "config", "default")); err != nil {
		return err
	}
	return s.AwaitGantryRollout(ctx)
}
