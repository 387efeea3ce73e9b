package node

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// containerRootDir is the root directory of a container. Only the container's own mounts show it.
const containerRootDir = "/run/lab-root"

// enterContainerRoot changes the root directory of the calling process to one that shows the
// machine's files and the volumes. It creates nothing in the machine's own directories.
func enterContainerRoot(volumes []volumeMount) error {
	if err := os.MkdirAll(containerRootDir, 0o755); err != nil {
		return err
	}
	if err := mountTmpfsWithEntriesOf("/", containerRootDir); err != nil {
		return err
	}
	for _, v := range volumes {
		if err := mountVolume(v); err != nil {
			return fmt.Errorf("mounting a volume at %s: %w", v.PathInContainer, err)
		}
	}
	if err := unix.Chroot(containerRootDir); err != nil {
		return fmt.Errorf("entering the container's root: %w", err)
	}
	return os.Chdir("/")
}

// mountVolume mounts one volume.
func mountVolume(v volumeMount) error {
	info, err := os.Stat(v.Source)
	if err != nil {
		return err
	}
	// If a directory of the path is missing, its parent is covered by one in which it can be
	// created.
	at := containerRootDir
	parts := strings.Split(strings.Trim(filepath.Clean(v.PathInContainer), "/"), "/")
	for i, part := range parts {
		next := filepath.Join(at, part)
		if target, err := os.Readlink(next); err == nil { // such as /var/run
			if !filepath.IsAbs(target) {
				target = filepath.Join(strings.TrimPrefix(at, containerRootDir), target)
			}
			return mountVolume(volumeMount{v.Source, filepath.Join(append([]string{target}, parts[i+1:]...)...), v.ReadOnly})
		}
		if _, err := os.Stat(next); err != nil {
			if at != containerRootDir {
				if err := mountTmpfsWithEntriesOf(at, at); err != nil {
					return err
				}
			}
			if i == len(parts)-1 && !info.IsDir() {
				err = os.WriteFile(next, nil, 0o644)
			} else {
				err = os.Mkdir(next, 0o755)
			}
			if err != nil {
				return err
			}
		}
		at = next
	}
	if err := unix.Mount(v.Source, at, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	if !v.ReadOnly {
		return nil
	}
	return unix.Mount("", at, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
}

// mountTmpfsWithEntriesOf mounts an empty writable directory over a directory, and shows the
// entries of another one in it. That may be the covered directory itself.
func mountTmpfsWithEntriesOf(from, to string) error {
	source, err := unix.Open(from, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(source)
	old := fmt.Sprintf("/proc/self/fd/%d", source)
	entries, err := os.ReadDir(old)
	if err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", to, "tmpfs", 0, "mode=755"); err != nil {
		return err
	}
	for _, e := range entries {
		if err := bindMountEntry(e, filepath.Join(old, e.Name()), filepath.Join(to, e.Name())); err != nil {
			return fmt.Errorf("showing %s in the container: %w", e.Name(), err)
		}
	}
	return nil
}

// bindMountEntry makes a directory's entry appear at another path.
func bindMountEntry(e os.DirEntry, from, to string) error {
	var err error
	switch {
	case e.Type()&os.ModeSymlink != 0:
		target, err := os.Readlink(from)
		if err != nil {
			return err
		}
		return os.Symlink(target, to)
	case e.IsDir():
		err = os.Mkdir(to, 0o755)
	default:
		err = os.WriteFile(to, nil, 0o644)
	}
	if err != nil {
		return err
	}
	return unix.Mount(from, to, "", unix.MS_BIND|unix.MS_REC, "")
}
