//go:build !windows

package command

import "io"

// enableColors reports whether a terminal shows colours. All of them do, but for those of Windows.
func enableColors(io.Writer) bool { return true }
