package gobgp

import (
	"log/slog"

	"github.com/osrg/gobgp/v3/pkg/log"
)

// logger tells what the library says at debug level: what matters of a session the relay sees and tells itself.
type logger struct{ log *slog.Logger }

func (l logger) tell(level, msg string, fields log.Fields) {
	args := make([]any, 0, 2*len(fields)+2)
	args = append(args, "level", level)
	for k, v := range fields {
		args = append(args, k, v)
	}
	l.log.Debug("gobgp: "+msg, args...)
}

// Panic ends the process, as the library means it: it calls this where its own state is broken.
func (l logger) Panic(msg string, fields log.Fields) { panic("gobgp: " + msg) }

// Fatal is told and survived: the library calls it for its own command alone.
func (l logger) Fatal(msg string, fields log.Fields) { l.tell("fatal", msg, fields) }

// Error implements log.Logger.
func (l logger) Error(msg string, fields log.Fields) { l.tell("error", msg, fields) }

// Warn implements log.Logger.
func (l logger) Warn(msg string, fields log.Fields) { l.tell("warning", msg, fields) }

// Info implements log.Logger.
func (l logger) Info(msg string, fields log.Fields) { l.tell("info", msg, fields) }

// Debug implements log.Logger, and drops: the library speaks of each route here.
func (l logger) Debug(string, log.Fields) {}

// SetLevel implements log.Logger.
func (l logger) SetLevel(log.LogLevel) {}

// GetLevel implements log.Logger: the level keeps the library from making what would be dropped.
func (l logger) GetLevel() log.LogLevel { return log.InfoLevel }
