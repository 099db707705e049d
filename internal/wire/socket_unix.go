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
type socket struct {
	conn  net.Conn
	raw   syscall.RawConn
	plain bool // conn adds nothing to it, such as timeouts of its own

	peek, step func(fd uintptr) bool // made once, for they would be allocated each time
	one        [1]byte               // for peek
	nothing    bool                  // peek found nothing

	out, in   []byte // for step to send, and to read to
	stepped   bool   // it sent
	sent, got int
	err       error
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
		_, err := peek(fd, s.one[:])
		s.nothing = errors.Is(err, syscall.EAGAIN)
		return true
	}
	s.step = s.sendOrRead
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

// exchange sends out, waits until there is something to read, and reads it. It
// returns how much was sent and read. Where not all is sent it does not wait, and
// where nothing is read and there is no error, reading or writing tells why.
//
// This is cheaper than to write and to read: the system is not asked for what cannot
// be there yet. Go's poller tells of what comes after a call of Read began, so the
// sending is within it; what came before is looked for there, too, for nobody would
// tell of it.
func (s *socket) exchange(out, in []byte) (sent, got int, err error) {
	s.out, s.in, s.stepped, s.sent, s.got, s.err = out, in, false, 0, 0, nil
	_ = s.raw.Read(s.step) // if it fails, so do reading and writing
	s.out, s.in = nil, nil
	return s.sent, s.got, s.err
}

// sendOrRead sends at first, and reads when it is called again. It returns whether
// there is nothing to wait for.
func (s *socket) sendOrRead(fd uintptr) bool {
	if !s.stepped {
		s.stepped = true
		if _, err := peek(fd, s.one[:]); !errors.Is(err, syscall.EAGAIN) {
			return true
		}
		n, err := write(fd, s.out)
		if err != nil {
			s.fail("write", err)
			return true
		}
		s.sent = n
		return n < len(s.out)
	}
	n, err := read(fd, s.in)
	if errors.Is(err, syscall.EAGAIN) {
		return false
	}
	if err != nil {
		s.fail("read", err)
	} else {
		s.got = n
	}
	return true
}

// fail keeps an error as the methods of conn would return it.
func (s *socket) fail(op string, err error) {
	if errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EINTR) {
		return // it is to be tried again
	}
	to := s.conn.RemoteAddr()
	s.err = &net.OpError{Op: op, Net: to.Network(), Source: s.conn.LocalAddr(), Addr: to, Err: os.NewSyscallError(op, err)}
}
