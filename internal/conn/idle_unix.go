// SPDX-License-Identifier: Apache-2.0

//go:build unix

package conn

import (
	"errors"
	"net"
	"syscall"
	"time"
)

// isIdle reports whether a kept connection is still open and no unexpected data has arrived.
// It makes one read(2) that does not wait: EAGAIN means idle. After data, the end or another
// error the connection must not be used again, so a byte that is read here does no harm. It
// also clears the read deadline.
//
// This is the only system call of the probe path that Go's net package does not make. The
// portable way is a Read with a deadline of a moment. Timers of an idle process are exact to
// about a millisecond, so each kept probe took 1.2 ms longer that way.
//
// A connection that gives no access to its socket counts as idle: if it is closed, the next
// request fails on it and is sent again over a new one.
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
