// SPDX-License-Identifier: Apache-2.0

//go:build unix

package wire

import (
	"errors"
	"net"
	"os"
	"syscall"
	"time"
)

// canPeek: quiet can tell.
const canPeek = true

// socket is what a connection is to the system, for what [net.Conn] has no words for.
// Nothing of it waits for anything but the other side, and it allocates but once.
type socket struct {
	conn  net.Conn
	raw   syscall.RawConn
	plain bool // conn adds nothing to it, such as timeouts of its own

	peek, step func(fd uintptr) bool // made once, for they would be allocated each time
	nothing    bool                  // peek found nothing
	out        []byte                // for step to send
	stepped    bool                  // step did
	sent       int
	err        error
}

// newSocket returns that of a connection, or nil if it has none.
func newSocket(conn net.Conn) *socket {
	c, ok := conn.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return nil
	}
	s := &socket{conn: conn, raw: raw}
	switch conn.(type) {
	case *net.TCPConn, *net.UnixConn:
		s.plain = true
	}
	s.peek = func(fd uintptr) bool {
		var one [1]byte
		// the sockets of Go do not block
		_, _, err := syscall.Recvfrom(int(fd), one[:], syscall.MSG_PEEK)
		s.nothing = errors.Is(err, syscall.EAGAIN)
		return true
	}
	s.step = func(fd uintptr) bool {
		if s.stepped {
			return true
		}
		s.stepped = true
		s.sent, s.err = syscall.Write(int(fd), s.out)
		return s.err != nil || s.sent < len(s.out)
	}
	return s
}

// quiet reports whether an idle connection is open and has nothing to be read.
// It does not wait. Anything there would be the end, or an answer that came
// before its request.
func (s *socket) quiet() bool {
	s.nothing = false
	err := s.raw.Read(s.peek)
	if errors.Is(err, os.ErrDeadlineExceeded) { // a timeout of the connection's own has passed since
		_ = s.conn.SetReadDeadline(time.Time{})
		err = s.raw.Read(s.peek)
	}
	return err == nil && s.nothing
}

// exchange sends p and waits until there is something to read, or the end. It returns
// how much of p was sent; where that is not all, it did not wait. Beside writing and
// reading, this saves the read that finds nothing yet.
//
// The poller of Go tells of what comes after the call of Read has begun, so p is sent
// within it.
func (s *socket) exchange(p []byte) (sent int) {
	s.out, s.stepped, s.sent = p, false, 0
	_ = s.raw.Read(s.step) // if waiting fails, so will reading
	s.out = nil
	if s.err != nil { // so will writing, or it has to wait
		return 0
	}
	return s.sent
}
