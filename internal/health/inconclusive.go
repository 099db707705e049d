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

// noise is by how much a beat may be late on any machine.
const noise = 20 * time.Millisecond

// InconclusiveError says why a result counts for nothing: it says something about
// this process and not about the target.
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
		return fmt.Sprintf("the result says nothing about the upstream: this process has a shortage (%s): %s", e.Shortage, e.Reason)
	}
	return fmt.Sprintf("the result says nothing about the upstream: this process was late by %s: %s", e.Late, e.Reason)
}

// inconclusive returns why the outcome of a probe counts for nothing, nil if it counts.
//
// A timeout does not while this process is late by more than a quarter of it. As many
// in a row as turn the target down are the limit: a busy process must not hide a target
// that is dead. From then on they count, until a result comes that lateness does not
// explain. A shortage has no such limit, as a probe that fails by it asked nothing.
//
// t.mu must be held.
func (t *Target) inconclusive(a *attempt, o outcome) *InconclusiveError {
	if o.shortage != "" {
		return &InconclusiveError{Shortage: o.shortage, Reason: o.Reason}
	}
	late := a.lateness(o.ended())
	if !o.slow || late <= max(t.settings.Timeout/4, noise) {
		t.lateInRow = 0
		return nil
	}
	if t.lateInRow >= t.settings.Fails {
		return nil
	}
	t.lateInRow++
	return &InconclusiveError{Late: late, Reason: o.Reason}
}

// shortage returns what this process lacks, if a probe failed for want of it, else an
// empty text.
func shortage(err error) string {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		if slices.Contains(shortages, errno) {
			if dial, ok := errors.AsType[*net.OpError](err); ok && errno == errNoAddress && dial.Addr != nil && isOutOfReach(dial.Addr.String()) {
				return ""
			}
			return errno.Error()
		}
		// A process that cannot be started. Of a connection the same number is the
		// other side's: the queue of its socket is full.
		if path, ok := errors.AsType[*fs.PathError](err); ok && errno == syscall.EAGAIN && path.Op == "fork/exec" {
			return "no further process: " + errno.Error()
		}
		return ""
	}
	if lookup, ok := errors.AsType[*net.DNSError](err); ok { // it keeps a text only
		if errno := ShortageIn(lookup.Error()); errno != nil {
			return errno.Error()
		}
	}
	return ""
}

// ShortageIn returns the shortage of this process that the text of a failed dial or
// lookup names, nil if it names none. It is for errors of which there is only the text,
// and which hold nothing that the other side said.
func ShortageIn(text string) error {
	for _, errno := range shortages {
		if strings.HasSuffix(text, errno.Error()) {
			if errno == errNoAddress && isOutOfReach(dialed(text)) {
				return nil
			}
			return errno
		}
	}
	// The system's own resolver says something else, so it is tried out whether there is
	// a descriptor.
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

// isOutOfReach reports whether this process has no address from which to reach another
// one, such as an IPv6 address where there is no IPv6. The error is that of a process
// that has used up its local ports, but no port would help. UDP has ports of its own, so
// it tells the two apart. Nothing is sent.
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
