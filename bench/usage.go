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

// cpu is the CPU time that the server and its children used, with that of the kernel on
// their behalf. Of children that ended it knows nothing.
func (p *process) cpu() (total time.Duration, err error) {
	err = p.family(func(pid int) error {
		used, err := cpuTime(pid)
		total += used
		return err
	})
	return total, err
}

// cpuTime reads the clock of a process, as clock_getcpuclockid(3) finds it: to the
// nanosecond, and with threads that ended. The ticks of /proc/<pid>/stat are 10 ms, and
// what /proc has to the nanosecond is of the threads that live.
func cpuTime(pid int) (time.Duration, error) {
	const scheduled = 2 // all that it was on a processor
	var used syscall.Timespec
	if _, _, errno := syscall.Syscall(syscall.SYS_CLOCK_GETTIME, uintptr(^pid<<3|scheduled), uintptr(unsafe.Pointer(&used)), 0); errno != 0 {
		return 0, fmt.Errorf("the CPU time of process %d: %w", pid, errno)
	}
	return time.Duration(used.Nano()), nil
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

// family looks at a process and its children.
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

// memory is how much memory of its own the server has at present, in bytes.
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
