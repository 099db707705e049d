// SPDX-License-Identifier: Apache-2.0

//go:build unix

package conn

import (
	"errors"
	"net"
	"syscall"
	"time"
)

// isIdle reports whether a connection is open and nothing arrived on it that no request
// asked for. It reads without waiting, as database drivers check the connections of their
// pools. A connection that gives no access to its socket counts as idle: if it is closed,
// the next request fails on it and is sent again over a new one.
func isIdle(c net.Conn) bool {
	socket, ok := c.(syscall.Conn)
	if !ok {
		return true
	}
	raw, err := socket.SyscallConn()
	if err != nil || c.SetReadDeadline(time.Time{}) != nil { // one that has passed would end the read
		return false
	}
	idle := false
	err = raw.Read(func(fd uintptr) bool {
		var unexpected [1]byte
		_, err := syscall.Read(int(fd), unexpected[:])
		idle = errors.Is(err, syscall.EAGAIN)
		return true // do not wait
	})
	return err == nil && idle
}
