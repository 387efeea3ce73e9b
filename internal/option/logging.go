package option

import (
	"context"
	"io"
	"log/slog"
	"strconv"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
)

// NewLogger returns a logger that writes lines of JSON at the level or above. Durations are written
// in seconds, such as 90s, and shorter ones than a second in their own unit, such as 250ms.
func (c *CommonOptions) NewLogger(w io.Writer) *slog.Logger {
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: logLevelByName[c.LogLevel], ReplaceAttr: replaceDurationLogAttribute}))
}

func replaceDurationLogAttribute(_ []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindDuration {
		a.Value = slog.StringValue(formatDurationInSeconds(a.Value.Duration()))
	}
	return a
}

// formatDurationInSeconds returns d in seconds, with at most three decimals, or d as Go writes it
// if it is shorter than a second. A reader compares 90s with 6.8s at once, and 1m30s with 6.8s not.
func formatDurationInSeconds(d time.Duration) string {
	if d.Abs() < time.Second {
		return d.String()
	}
	return strconv.FormatFloat(d.Round(time.Millisecond).Seconds(), 'f', -1, 64) + "s"
}

// LogStart writes the first line of a program: its version, and with what it runs.
func (c *CommonOptions) LogStart(log *slog.Logger, program string, pairs ...any) {
	bgp := "on"
	if c.BGPMode == "disabled" {
		bgp = "off"
	}
	log.Info("the "+program+" starts", append([]any{"version", ModuleVersion(), "namespace", c.Namespace, "loadBalancerClass", c.LoadBalancerClass, "bgp", bgp}, pairs...)...)
}

// SetLibraryLoggers sends the logs of the Kubernetes libraries to log. running is the time until
// the program stops.
func SetLibraryLoggers(running context.Context, log *slog.Logger) {
	h := NewLibraryLogHandler(running, log.Handler())
	ctrllog.SetLogger(logr.FromSlogHandler(h))
	klog.SetSlogLogger(slog.New(h))
}

// NewLibraryLogHandler returns a handler for the logs of libraries. What they log at info is only
// shown at debug: it is about their insides. When running has ended, their errors are too: an
// orderly stop interrupts what they do.
func NewLibraryLogHandler(running context.Context, h slog.Handler) slog.Handler {
	return libraryLogHandler{Handler: h, runContext: running}
}

type libraryLogHandler struct {
	slog.Handler
	runContext context.Context
}

// effectiveLogLevel returns the level at which a record is shown.
func (h libraryLogHandler) effectiveLogLevel(level slog.Level) slog.Level {
	if level < slog.LevelWarn || h.runContext.Err() != nil {
		return min(level, slog.LevelDebug)
	}
	return level
}

// Enabled implements slog.Handler.
func (h libraryLogHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.Handler.Enabled(ctx, h.effectiveLogLevel(level))
}

// Handle implements slog.Handler.
func (h libraryLogHandler) Handle(ctx context.Context, r slog.Record) error {
	r.Level = h.effectiveLogLevel(r.Level)
	return h.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (h libraryLogHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return libraryLogHandler{h.Handler.WithAttrs(attrs), h.runContext}
}

// WithGroup implements slog.Handler.
func (h libraryLogHandler) WithGroup(name string) slog.Handler {
	return libraryLogHandler{h.Handler.WithGroup(name), h.runContext}
}
