// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"bytes"
	"context"
	"debug/buildinfo"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"runtime/debug"
	"strings"
	"time"
)

// environment describes what was measured, and on which machine. Figures of another
// environment are not comparable.
type environment struct {
	Caddy      string   `json:"caddy"`
	Go         string   `json:"go"`
	Nginx      string   `json:"nginx"`
	HAProxy    string   `json:"haproxy"`
	Vegeta     string   `json:"vegeta"`
	Kernel     string   `json:"kernel"`
	Processors int      `json:"processors"`
	Load       string   `json:"load"` // the average of the minute before the start
	Flags      []string `json:"flags"`
	Date       string   `json:"date"`
	Took       string   `json:"took"`
}

// load returns the average number of running processes in the last minute.
func load() string {
	averages, _ := os.ReadFile("/proc/loadavg")
	last, _, _ := strings.Cut(string(averages), " ")
	return last
}

// look returns the environment, and an error if the program cannot be read.
func look(ctx context.Context, caddy string, began time.Time) (e environment, err error) {
	built, err := buildinfo.ReadFile(caddy)
	if err != nil {
		return e, err
	}
	e.Go, e.Caddy = strings.TrimPrefix(built.GoVersion, "go"), version(built, "github.com/caddyserver/caddy/v2")
	if self, ok := debug.ReadBuildInfo(); ok {
		e.Vegeta = version(self, "github.com/tsenart/vegeta/v12")
	}
	e.Nginx, e.HAProxy = versionOf(ctx, "nginx"), versionOf(ctx, "haproxy")
	kernel, err := os.ReadFile("/proc/sys/kernel/osrelease")
	e.Kernel = string(bytes.TrimSpace(kernel))
	e.Processors = runtime.NumCPU()
	e.Date = began.UTC().Format(time.DateOnly)
	flag.Visit(func(f *flag.Flag) {
		if f.Name != "results" {
			e.Flags = append(e.Flags, "-"+f.Name+"="+f.Value.String())
		}
	})
	return e, err
}

// version returns the version of a module in a program.
func version(built *debug.BuildInfo, module string) string {
	for _, dependency := range built.Deps {
		if dependency.Path == module {
			return strings.TrimPrefix(dependency.Version, "v")
		}
	}
	return ""
}

var versionNumber = regexp.MustCompile(`\d+(\.\d+)+[^ \n]*`)

// versionOf returns the version that an installed program prints, "" if it is not
// installed.
func versionOf(ctx context.Context, program string) string {
	out, _ := exec.CommandContext(ctx, program, "-v").CombinedOutput()
	return string(versionNumber.Find(out))
}

// String returns the environment in one line, for the results.
func (e environment) String() string {
	var parts []string
	for _, p := range [][2]string{{"Caddy", e.Caddy}, {"Go", e.Go}, {"nginx", e.Nginx}, {"HAProxy", e.HAProxy}, {"vegeta", e.Vegeta}, {"Linux", e.Kernel}} {
		if p[1] != "" {
			parts = append(parts, p[0]+" "+p[1])
		}
	}
	command := strings.Join(append([]string{"go -C bench run ."}, e.Flags...), " ")
	return fmt.Sprintf("`%s` ran on %s with %s, on %d processors. The load average before was %s. The run took %s.", command, e.Date, strings.Join(parts, ", "), e.Processors, e.Load, e.Took)
}
