package main

import (
	"log/slog"
	"os"

	"github.com/xdp-cni/xdp-cni/conf"
)

// openLog returns the log that the configuration asks for and what closes it. Standard output is
// the runtime's; without a log file only warnings are written, to standard error.
func openLog(config *conf.Config) (*slog.Logger, func()) {
	stderr := func(level slog.Level) *slog.Logger {
		return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	}
	if config.LogFile == "" {
		return stderr(max(config.LogLevel, slog.LevelWarn)), func() {}
	}
	file, err := os.OpenFile(config.LogFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		// no reason to leave a pod without network
		log := stderr(config.LogLevel)
		log.Warn("logging to standard error", "error", err)
		return log, func() {}
	}
	handler := slog.NewJSONHandler(file, &slog.HandlerOptions{Level: config.LogLevel})
	return slog.New(handler).With("pid", os.Getpid()), func() { _ = file.Close() }
}
