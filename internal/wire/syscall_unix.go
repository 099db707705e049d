// SPDX-License-Identifier: Apache-2.0

//go:build unix && !(linux && (amd64 || arm64))

package wire

import "syscall"

// The sockets of Go do not block, so these return at once.

func read(fd uintptr, p []byte) (int, error) { return syscall.Read(int(fd), p) }

func write(fd uintptr, p []byte) (int, error) { return syscall.Write(int(fd), p) }

func peek(fd uintptr, p []byte) (int, error) {
	n, _, err := syscall.Recvfrom(int(fd), p, syscall.MSG_PEEK)
	return n, err
}
