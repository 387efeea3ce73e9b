package command

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// openTerminal returns both ends of a new terminal: what is written to the program's end is read
// from the other one.
func openTerminal(t *testing.T) (reader, programEnd *os.File) {
	t.Helper()
	reader, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip("no terminal can be opened: ", err)
	}
	t.Cleanup(func() { reader.Close() })
	if err := unix.IoctlSetPointerInt(int(reader.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Skip("no terminal can be opened: ", err)
	}
	number, err := unix.IoctlGetInt(int(reader.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Skip("no terminal can be opened: ", err)
	}
	programEnd, err = os.OpenFile("/dev/pts/"+strconv.Itoa(number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip("no terminal can be opened: ", err)
	}
	return reader, programEnd
}

// TestOnlyTerminalsGetColors prints to a terminal, to one whose user wants no colours, and to a
// file.
func TestOnlyTerminalsGetColors(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Forbidden","code":403}`)
	}))
	defer server.Close()
	t.Setenv("KUBECONFIG", filepath.Join(t.TempDir(), "none"))
	for _, c := range []struct {
		name       string
		isTerminal bool
		variables  map[string]string
		wantColors bool
	}{
		{"a terminal", true, map[string]string{"TERM": "xterm"}, true},
		{"NO_COLOR", true, map[string]string{"TERM": "xterm", "NO_COLOR": ""}, false},
		{"a dumb terminal", true, map[string]string{"TERM": "dumb"}, false},
		{"a file", false, map[string]string{"TERM": "xterm"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var reader, out *os.File
			if c.isTerminal {
				reader, out = openTerminal(t)
			} else {
				file, err := os.CreateTemp(t.TempDir(), "out")
				if err != nil {
					t.Fatal(err)
				}
				reader, out = file, file
			}
			lookup := func(name string) (string, bool) { v, ok := c.variables[name]; return v, ok }
			RunProgram(t.Context(), ProcessEnvironment{Args: []string{"--server", server.URL, "explain", "service", "web"}, Out: out, ErrOut: io.Discard, Now: time.Now, LookupVariable: lookup})
			if !c.isTerminal {
				if _, err := reader.Seek(0, io.SeekStart); err != nil {
					t.Fatal(err)
				}
			}
			text := make([]byte, 4096)
			n, err := reader.Read(text)
			if err != nil || !bytes.Contains(text[:n], []byte("you have no right to get services")) {
				t.Fatalf("it prints %q (%v)", text[:n], err)
			}
			if got := strings.Contains(string(text[:n]), "\x1b["); got != c.wantColors {
				t.Errorf("it has colours: %v, want %v: %q", got, c.wantColors, text[:n])
			}
		})
	}
}
