// SPDX-License-Identifier: Apache-2.0

//go:build unix

package exec

import (
	"errors"
	"os"
	"os/exec"
	"syscall"
)

// killWhole has the command run in a process group of its own, which is killed
// as a whole.
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
