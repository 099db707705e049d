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

// environment is what was measured, and where: numbers of another one are other numbers.
type environment struct {
	Caddy      string   `json:"caddy"`
	Go         string   `json:"go"`
	Nginx      string   `json:"nginx"`
	HAProxy    string   `json:"haproxy"`
	Vegeta     string   `json:"vegeta"`
	Kernel     string   `json:"kernel"`
	Processors int      `json:"processors"`
	Load       string   `json:"load"` // the average of a minute before it began: what others did
	Flags      []string `json:"flags"`
	Date       string   `json:"date"`
	Took       string   `json:"took"`
}

// load is how many processes ran on average in the last minute.
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

// version returns that of a module that a program is built of.
func version(built *debug.BuildInfo, module string) string {
	for _, dependency := range built.Deps {
		if dependency.Path == module {
			return strings.TrimPrefix(dependency.Version, "v")
		}
	}
	return ""
}

var versionNumber = regexp.MustCompile(`\d+(\.\d+)+[^ \n]*`)

// versionOf returns what an installed program says of itself, "" if there is none.
func versionOf(ctx context.Context, program string) string {
	out, _ := exec.CommandContext(ctx, program, "-v").CombinedOutput()
	return string(versionNumber.Find(out))
}

// String returns it in one line, as the results show it.
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
