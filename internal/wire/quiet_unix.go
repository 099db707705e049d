// SPDX-License-Identifier: Apache-2.0

//go:build unix

package wire

import (
	"errors"
	"net"
	"syscall"
)

// canPeek: quiet can tell.
const canPeek = true

// quiet reports whether an idle connection is open and has nothing to be read.
// It does not wait. Anything there would be the end, or an answer that came
// before its request.
func quiet(conn net.Conn) bool {
	socket, ok := conn.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return false
	}
	nothing := false
	err = raw.Read(func(fd uintptr) bool {
		var one [1]byte
		// the sockets of Go do not block
		_, _, err := syscall.Recvfrom(int(fd), one[:], syscall.MSG_PEEK)
		nothing = errors.Is(err, syscall.EAGAIN)
		return true
	})
	return err == nil && nothing
}
