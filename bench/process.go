// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"time"
)

// process is a server that is measured from outside.
type process struct {
	cmd    *exec.Cmd
	output *bytes.Buffer
	ended  chan struct{}
}

// buildCaddy builds a program of Caddy, with the versions of this plugin.
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

// stop ends the server, and returns an error if it ended before, or has to be killed.
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
