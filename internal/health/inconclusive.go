// SPDX-License-Identifier: Apache-2.0

package health

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"
)

// InconclusiveError says why a result counts for nothing: its cause is this process and
// not the target.
type InconclusiveError struct {
	// Late is by how much this process was late while the probe timed out, 0 if that
	// is not the cause.
	Late time.Duration
	// Shortage is what this process lacks, in the words of the operating system,
	// empty if that is not the cause.
	Shortage string
	// Reason is why the probe failed, in one bounded line.
	Reason string
}

// Error returns the cause.
func (e *InconclusiveError) Error() string {
	if e.Shortage != "" {
		return fmt.Sprintf("the result says nothing about the upstream: this process lacks a resource (%s): %s", e.Shortage, e.Reason)
	}
	return fmt.Sprintf("the result says nothing about the upstream: this process was late by %s: %s", e.Late, e.Reason)
}

// Shortage returns what this process lacks, if a probe failed because of that, else an
// empty text.
func Shortage(err error) string {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		if slices.Contains(shortages, errno) {
			if dial, ok := errors.AsType[*net.OpError](err); ok && errno == errNoAddress && dial.Addr != nil && isOutOfReach(dial.Addr.String()) {
				return ""
			}
			return errno.Error()
		}
		// A process cannot be started. The same error of a connection comes from the
		// other side: the queue of its socket is full.
		if path, ok := errors.AsType[*fs.PathError](err); ok && errno == syscall.EAGAIN && path.Op == "fork/exec" {
			return "no further process: " + errno.Error()
		}
		return ""
	}
	if lookup, ok := errors.AsType[*net.DNSError](err); ok { // it has only the text of its cause
		if errno := ShortageIn(lookup.Error()); errno != nil {
			return errno.Error()
		}
	}
	return ""
}

// ShortageIn returns the shortage of this process that the text of a failed dial or
// lookup names, nil if it names none. Use it where only the text of an error is available,
// and only if no part of it comes from the other side.
func ShortageIn(text string) error {
	for _, errno := range shortages {
		if strings.HasSuffix(text, errno.Error()) {
			if errno == errNoAddress && isOutOfReach(dialed(text)) {
				return nil
			}
			return errno
		}
	}
	// The resolver of the system reports another error, so open a file to find out
	// whether descriptors are left.
	if strings.Contains(text, "lookup ") {
		f, err := os.Open(os.DevNull)
		if err == nil {
			_ = f.Close()
		} else if errno, ok := errors.AsType[syscall.Errno](err); ok && slices.Contains(shortages, errno) {
			return errno
		}
	}
	return nil
}

// isOutOfReach reports whether this process has no local address from which it can reach
// another one, such as an IPv6 address on a host without IPv6. The error is the same as
// when all local ports are in use. UDP has ports of its own, so a UDP socket tells the two
// apart. Nothing is sent.
func isOutOfReach(address string) bool {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return false
	}
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	if err == nil {
		_ = conn.Close()
		return false
	}
	errno, ok := errors.AsType[syscall.Errno](err)
	return ok && errno == errNoAddress
}

// dialed returns the address in the text of a failed dial, empty if there is none.
func dialed(text string) string {
	_, text, _ = strings.Cut(text, "dial tcp ")
	address, _, _ := strings.Cut(text, ": ")
	if _, to, found := strings.Cut(address, "->"); found {
		return to
	}
	return address
}
