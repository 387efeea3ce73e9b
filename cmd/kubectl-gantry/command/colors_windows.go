package command

import (
	"io"
	"os"

	"golang.org/x/sys/windows"
)

// enableColors lets a console of Windows interpret the codes of colours. It reports whether that
// succeeded.
func enableColors(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	var mode uint32
	console := windows.Handle(f.Fd())
	return windows.GetConsoleMode(console, &mode) == nil && windows.SetConsoleMode(console, mode|windows.ENABLE_VIRTUAL_TERMINAL_PROCESSING) == nil
}
