package option

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"
)

// TestLibraryLogsBelowWarnAreHiddenAtInfo checks what is shown at the level info.
func TestLibraryLogsBelowWarnAreHiddenAtInfo(t *testing.T) {
	var out bytes.Buffer
	o := CommonOptions{LogLevel: "info", Namespace: "metallb-system"}
	log := o.NewLogger(&out)
	running, stop := context.WithCancel(t.Context())
	library := slog.New(NewLibraryLogHandler(running, log.Handler())).With("controller", "x")
	o.LogStart(log, "speaker", "node", "node1")
	log.Info("the password changed", "holdTime", 90*time.Second)
	library.Info("Starting EventSource")
	library.Warn("the connection is slow")
	stop()
	library.Error("leader election lost")
	for _, want := range []string{`"msg":"the speaker starts"`, `"namespace":"metallb-system"`, `"node":"node1"`, `"holdTime":"90s"`, "the connection is slow"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the log lacks %s:\n%s", want, &out)
		}
	}
	for _, not := range []string{"EventSource", "leader election lost"} {
		if strings.Contains(out.String(), not) {
			t.Errorf("the log shows %q:\n%s", not, &out)
		}
	}
}
