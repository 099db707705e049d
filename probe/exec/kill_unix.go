// SPDX-License-Identifier: Apache-2.0

//go:build unix

package exec

import (
	"os/exec"
	"syscall"
)

// killWhole has the command run in a process group of its own, which is killed
// as a whole.
func killWhole(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
}
