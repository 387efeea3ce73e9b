package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// neededModuleNames are the modules that the guest needs to reach its files.
var neededModuleNames = []string{"virtio_pci", "9pnet_virtio", "9p", "overlay"}

// networkModulePatterns match the modules that the kernel loads on demand, when a test first uses
// what they provide.
var networkModulePatterns = []string{
	"net/netfilter/*", "net/netfilter/*/*", "net/ipv4/*", "net/ipv4/*/*", "net/ipv6/*", "net/ipv6/*/*", "net/sched/*", "net/8021q/*", "net/bridge/*", "net/bridge/*/*",
	"drivers/net/bonding/*", "drivers/net/dummy.ko", "drivers/net/ifb.ko", "drivers/net/macvlan.ko", "drivers/net/tun.ko", "drivers/net/veth.ko", "drivers/net/vrf.ko",
	"crypto/*", "lib/*",
}

// unpackedKernel is a Debian kernel in a directory of its own. It is not installed.
type unpackedKernel struct{ directory, release string }

func (k unpackedKernel) imagePath() string {
	return filepath.Join(k.directory, "boot", "vmlinuz-"+k.release)
}

func (k unpackedKernel) moduleDirectory() string {
	return filepath.Join(k.directory, "lib", "modules", k.release)
}

// findOrDownloadKernel returns the kernel of a Debian package. If the package is not in the user's
// cache, it downloads and unpacks it.
func findOrDownloadKernel(ctx context.Context, debianPackage string) (unpackedKernel, error) {
	name, err := resolveKernelPackage(ctx, debianPackage)
	if err != nil {
		return unpackedKernel{}, err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return unpackedKernel{}, fmt.Errorf("finding a cache directory for the kernel: %w", err)
	}
	k := unpackedKernel{directory: filepath.Join(cache, "gantry", name), release: strings.TrimSuffix(strings.TrimPrefix(name, "linux-image-"), "-unsigned")}
	if _, err := os.Stat(k.imagePath()); err == nil {
		return k, nil
	}
	if err := os.MkdirAll(filepath.Dir(k.directory), 0o755); err != nil {
		return k, fmt.Errorf("creating the cache directory: %w", err)
	}
	part, err := os.MkdirTemp(filepath.Dir(k.directory), "kernel-")
	if err != nil {
		return k, fmt.Errorf("creating a directory for the kernel: %w", err)
	}
	defer os.RemoveAll(part)
	fmt.Fprintln(os.Stderr, "downloading", name)
	if _, err := runHostCommand(ctx, part, "apt-get", "download", "-qq", name); err != nil {
		return k, err
	}
	files, err := filepath.Glob(filepath.Join(part, "*.deb"))
	if err != nil || len(files) != 1 {
		return k, errors.Join(err, fmt.Errorf("apt-get download %s left %d packages", name, len(files)))
	}
	unpacked := filepath.Join(part, "unpacked")
	if _, err := runHostCommand(ctx, part, "dpkg-deb", "-x", files[0], unpacked); err != nil {
		return k, err
	}
	if _, err := runHostCommand(ctx, part, "busybox", "depmod", "-b", unpacked, k.release); err != nil {
		return k, err
	}
	return k, os.Rename(unpacked, k.directory)
}

// resolveKernelPackage returns the package that has the kernel itself: debianPackage, or the one on
// which it depends.
func resolveKernelPackage(ctx context.Context, debianPackage string) (string, error) {
	out, err := runHostCommand(ctx, "", "apt-cache", "depends", "--no-recommends", "--no-suggests", debianPackage)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(out) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: "); ok && strings.HasPrefix(name, "linux-image-") {
			return name, nil
		}
	}
	return debianPackage, nil
}

// runHostCommand runs a program on this machine and returns its standard output.
func runHostCommand(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	var out, fault bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &fault
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(fault.String()))
	}
	return out.String(), nil
}

// selectModules returns the paths of the modules that the guest needs, relative to the module
// directory, with all modules on which they depend.
func (k unpackedKernel) selectModules() ([]string, error) {
	text, err := os.ReadFile(filepath.Join(k.moduleDirectory(), "modules.dep"))
	if err != nil {
		return nil, fmt.Errorf("reading the dependencies of the modules: %w", err)
	}
	dependencies := parseModuleDependencies(string(text))
	selected := map[string]struct{}{}
	var selectWithDependencies func(module string)
	selectWithDependencies = func(module string) {
		if _, known := selected[module]; known {
			return
		}
		selected[module] = struct{}{}
		for _, d := range dependencies[module] {
			selectWithDependencies(d)
		}
	}
	for module := range dependencies {
		if isModuleNeeded(module) {
			selectWithDependencies(module)
		}
	}
	for m := range selected {
		if _, err := os.Stat(filepath.Join(k.moduleDirectory(), m)); errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("module %s is missing in %s", m, k.moduleDirectory())
		}
	}
	return slices.Sorted(maps.Keys(selected)), nil
}

// parseModuleDependencies reads lines such as "kernel/fs/a.ko: kernel/fs/b.ko kernel/fs/c.ko".
func parseModuleDependencies(text string) map[string][]string {
	out := map[string][]string{}
	for line := range strings.Lines(text) {
		if module, rest, ok := strings.Cut(line, ":"); ok {
			out[module] = strings.Fields(rest)
		}
	}
	return out
}

func isModuleNeeded(module string) bool {
	base, _, _ := strings.Cut(path.Base(module), ".")
	if slices.Contains(neededModuleNames, base) {
		return true
	}
	return slices.ContainsFunc(networkModulePatterns, func(pattern string) bool {
		ok, _ := path.Match("kernel/"+pattern, module)
		return ok
	})
}
