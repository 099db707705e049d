// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package wire

import (
	"syscall"
	"unsafe"
)

// The sockets of Go do not block, so these return at once. The scheduler need not be
// told: that would wake the thread that looks after blocked ones, which took a tenth
// of the CPU time of a probe.

func read(fd uintptr, p []byte) (int, error) {
	return result(syscall.RawSyscall(syscall.SYS_READ, fd, uintptr(unsafe.Pointer(&p[0])), uintptr(len(p))))
}

func write(fd uintptr, p []byte) (int, error) {
	return result(syscall.RawSyscall(syscall.SYS_WRITE, fd, uintptr(unsafe.Pointer(&p[0])), uintptr(len(p))))
}

func peek(fd uintptr, p []byte) (int, error) {
	return result(syscall.RawSyscall6(syscall.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)), syscall.MSG_PEEK, 0, 0))
}

func result(n, _ uintptr, errno syscall.Errno) (int, error) {
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
