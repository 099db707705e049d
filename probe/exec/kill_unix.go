// SPDX-License-Identifier: Apache-2.0

//go:build unix

package exec

import (
	"errors"
	"os"
	"os/exec"
	"syscall"
)

// killWhole runs the command in a process group of its own, and kills the whole group.
func killWhole(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error {
		err := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		if errors.Is(err, syscall.ESRCH) {
			return os.ErrProcessDone
		}
		return err
	}
}
