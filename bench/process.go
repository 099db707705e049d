// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// process is a server that is measured from outside.
type process struct {
	cmd    *exec.Cmd
	output *bytes.Buffer
	ended  chan struct{}
}

// buildCaddy builds a program of Caddy, in the versions that this plugin is built with.
func buildCaddy(ctx context.Context, path, program string) error {
	build := exec.CommandContext(ctx, "go", "build", "-buildvcs=false", "-o", path, program)
	build.Dir = ".."
	if output, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("building %s: %w: %s", program, err, output)
	}
	return nil
}

// launch runs a command in a folder.
func launch(folder string, command *exec.Cmd, environment ...string) (*process, error) {
	p := &process{cmd: command, output: new(bytes.Buffer)}
	p.cmd.Dir = folder
	p.cmd.Env = append(append(os.Environ(), "XDG_DATA_HOME="+folder, "XDG_CONFIG_HOME="+folder), environment...)
	p.cmd.Stdout, p.cmd.Stderr = p.output, p.output
	p.cmd.Cancel = func() error { return p.cmd.Process.Signal(os.Interrupt) }
	p.cmd.WaitDelay = 5 * time.Second
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	p.ended = make(chan struct{})
	go func() {
		_ = p.cmd.Wait()
		close(p.ended)
	}()
	return p, nil
}

// stop ends the server, and reports if it had ended before, or has to be killed.
func (p *process) stop() error {
	const limit = 15 * time.Second
	select {
	case <-p.ended:
		return fmt.Errorf("%s ended early: %s", p.cmd.Path, p.output)
	default:
	}
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
		return err
	}
	select {
	case <-p.ended:
		return nil
	case <-time.After(limit):
		p.kill()
		return fmt.Errorf("%s does not end in %s: %s", p.cmd.Path, limit, p.output)
	}
}

// kill ends the server as kill -9 does.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.ended
}

// cpu is the CPU time that the server used, with its children and with that of the
// kernel on their behalf.
func (p *process) cpu() (time.Duration, error) {
	const tick = 10 * time.Millisecond // as Linux shows it, whatever its own clock does
	var total time.Duration
	err := p.family(func(folder string, root bool) error {
		fields, err := statFields(folder)
		if err != nil {
			return err
		}
		used := fields[11:13]
		if root {
			used = fields[11:15] // children that ended, too
		}
		for _, field := range used {
			n, err := strconv.ParseInt(field, 10, 64)
			if err != nil {
				return err
			}
			total += time.Duration(n * int64(tick))
		}
		return nil
	})
	return total, err
}

// statFields are those after the name of a process, of the file stat in its folder.
func statFields(folder string) ([]string, error) {
	stat, err := os.ReadFile(filepath.Join(folder, "stat"))
	if err != nil {
		return nil, err
	}
	// the name, in brackets, can have anything in it
	return strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])), nil
}

// children returns the processes that the server started, as nginx and HAProxy do.
func (p *process) children() (children []int, err error) {
	folders, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	for _, folder := range folders {
		fields, err := statFields(folder)
		if err != nil || fields[1] != strconv.Itoa(p.cmd.Process.Pid) {
			continue // it ended meanwhile, or is another's
		}
		child, err := strconv.Atoi(filepath.Base(folder))
		if err != nil {
			return nil, err
		}
		children = append(children, child)
	}
	return children, nil
}

// family looks at a process and its children, by their folders below /proc.
func (p *process) family(look func(folder string, root bool) error) error {
	children, err := p.children()
	if err != nil {
		return err
	}
	for i, pid := range append([]int{p.cmd.Process.Pid}, children...) {
		if err := look(filepath.Join("/proc", strconv.Itoa(pid)), i == 0); err != nil {
			return err
		}
	}
	return nil
}

// memory is how much memory of its own the server has at present, in bytes.
func (p *process) memory() (total int64, err error) {
	err = p.family(func(folder string, _ bool) error {
		status, err := os.ReadFile(filepath.Join(folder, "status"))
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(status)) {
			if rest, ok := strings.CutPrefix(line, "RssAnon:"); ok {
				kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
				total += kib << 10
				return err
			}
		}
		return fmt.Errorf("no RssAnon in the status of %s", p.cmd.Path)
	})
	return total, err
}
