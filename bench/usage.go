// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

// cpu returns the CPU time of the server and its children, including the time of the
// kernel for them. Children that have ended are not included.
func (p *process) cpu() (total time.Duration, err error) {
	err = p.family(func(pid int) error {
		used, err := cpuTime(pid)
		total += used
		return err
	})
	return total, err
}

// cpuTime reads the CPU clock of a process, as clock_getcpuclockid(3) finds it. It has
// nanoseconds and includes threads that have ended. /proc/<pid>/stat has steps of 10
// ms, and the files of /proc with nanoseconds lack threads that have ended.
func cpuTime(pid int) (time.Duration, error) {
	const scheduled = 2 // user and system time
	var used syscall.Timespec
	if _, _, errno := syscall.Syscall(syscall.SYS_CLOCK_GETTIME, uintptr(^pid<<3|scheduled), uintptr(unsafe.Pointer(&used)), 0); errno != 0 {
		return 0, fmt.Errorf("the CPU time of process %d: %w", pid, errno)
	}
	return time.Duration(used.Nano()), nil
}

// statFields returns the fields after the name of a process in the file stat of its
// folder.
func statFields(folder string) ([]string, error) {
	stat, err := os.ReadFile(filepath.Join(folder, "stat"))
	if err != nil {
		return nil, err
	}
	// the name, in brackets, can contain any characters
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
			continue // it has ended, or belongs to another user
		}
		child, err := strconv.Atoi(filepath.Base(folder))
		if err != nil {
			return nil, err
		}
		children = append(children, child)
	}
	return children, nil
}

// family calls look for a process and its children.
func (p *process) family(look func(pid int) error) error {
	children, err := p.children()
	if err != nil {
		return err
	}
	for _, pid := range append(children, p.cmd.Process.Pid) {
		if err := look(pid); err != nil {
			return err
		}
	}
	return nil
}

// memory returns the size of the server's own memory, in bytes.
func (p *process) memory() (total int64, err error) {
	err = p.family(func(pid int) error {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
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
