package main

import (
	"bytes"
	"compress/gzip"
	"context"
	_ "embed"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// initScript is the first program of the guest.
//
//go:embed init.sh
var initScript string

// initramfsDirectories are the directories of the initramfs.
var initramfsDirectories = []string{"bin", "sbin", "dev", "proc", "sys", "lower", "upper", "guest"}

// writeInitramfs writes the file system from which the guest starts: busybox, the modules and
// initScript. The kernel loads further modules from it too.
func (k unpackedKernel) writeInitramfs(ctx context.Context, to string) error {
	staging, err := os.MkdirTemp("", "gantry-initramfs-")
	if err != nil {
		return fmt.Errorf("creating a directory for the initramfs: %w", err)
	}
	defer os.RemoveAll(staging)
	for _, d := range initramfsDirectories {
		if err := os.MkdirAll(filepath.Join(staging, d), 0o755); err != nil {
			return err
		}
	}
	if err := k.stageModules(ctx, staging); err != nil {
		return err
	}
	busybox, err := runHostCommand(ctx, "", "sh", "-c", "command -v busybox")
	if err != nil {
		return err
	}
	if err := copyRegularFile(strings.TrimSpace(busybox), filepath.Join(staging, "bin", "busybox"), 0o755); err != nil {
		return err
	}
	for _, link := range []string{"bin/sh", "sbin/modprobe"} {
		if err := os.Symlink("/bin/busybox", filepath.Join(staging, link)); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(staging, "init"), []byte(initScript), 0o755); err != nil {
		return err
	}
	return writeCompressedArchive(to, staging)
}

// stageModules copies the modules into the staging directory and indexes them there. The index of
// all modules of the kernel would make each search in the guest slow.
func (k unpackedKernel) stageModules(ctx context.Context, staging string) error {
	modules, err := k.selectModules()
	if err != nil {
		return err
	}
	for _, m := range modules {
		to := filepath.Join(staging, "lib", "modules", k.release, m)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		if err := copyRegularFile(filepath.Join(k.moduleDirectory(), m), to, 0o644); err != nil {
			return err
		}
	}
	_, err = runHostCommand(ctx, "", "busybox", "depmod", "-b", staging, k.release)
	return err
}

func copyRegularFile(from, to string, mode os.FileMode) error {
	content, err := os.ReadFile(from)
	if err != nil {
		return fmt.Errorf("copying %s: %w", from, err)
	}
	return os.WriteFile(to, content, mode)
}

// writeCompressedArchive writes a directory as an archive in the format newc of cpio, which the
// kernel unpacks (Documentation/driver-api/early-userspace/buffer-format.rst of Linux).
func writeCompressedArchive(to, directory string) error {
	f, err := os.Create(to)
	if err != nil {
		return fmt.Errorf("creating the initramfs: %w", err)
	}
	defer f.Close()
	compressor := gzip.NewWriter(f)
	inode := 0
	err = filepath.WalkDir(directory, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == directory {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		name, err := filepath.Rel(directory, path)
		if err != nil {
			return err
		}
		var content []byte
		switch {
		case info.Mode().IsRegular():
			content, err = os.ReadFile(path)
		case info.Mode()&fs.ModeSymlink != 0:
			var target string
			target, err = os.Readlink(path)
			content = []byte(target)
		}
		if err != nil {
			return err
		}
		inode++
		_, err = compressor.Write(encodeArchiveEntry(name, inode, archiveMode(info.Mode()), content))
		return err
	})
	if err == nil {
		_, err = compressor.Write(encodeArchiveEntry("TRAILER!!!", 0, 0, nil))
	}
	if err == nil {
		err = compressor.Close()
	}
	if err != nil {
		return fmt.Errorf("writing the initramfs: %w", err)
	}
	return f.Close()
}

// archiveMode returns the type and the permissions of a file as the kernel numbers them (inode(7)).
func archiveMode(m fs.FileMode) int {
	switch {
	case m.IsDir():
		return 0o040000 | int(m.Perm())
	case m&fs.ModeSymlink != 0:
		return 0o120777
	}
	return 0o100000 | int(m.Perm())
}

// encodeArchiveEntry returns the header, the name and the content of one file, each padded to four
// bytes.
func encodeArchiveEntry(name string, inode, mode int, content []byte) []byte {
	var b bytes.Buffer
	pad := func() { _, _ = io.WriteString(&b, strings.Repeat("\x00", -b.Len()&3)) }
	b.WriteString("070701")
	// ino, mode, uid, gid, nlink, mtime, filesize, four device numbers, namesize, check
	for _, field := range []int{inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0} {
		fmt.Fprintf(&b, "%08x", field)
	}
	b.WriteString(name + "\x00")
	pad()
	b.Write(content)
	pad()
	return b.Bytes()
}
