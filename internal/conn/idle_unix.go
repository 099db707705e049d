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
// pools. A connection of another type may be a layer above the socket. It counts as idle:
// if it is closed, the next request fails on it and is sent again over a new one.
func isIdle(c net.Conn) bool {
	var raw syscall.RawConn
	var err error
	switch c := c.(type) {
	case *net.TCPConn:
		raw, err = c.SyscallConn()
	case *net.UnixConn:
		raw, err = c.SyscallConn()
	default:
		return true
	}
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
