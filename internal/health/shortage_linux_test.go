// SPDX-License-Identifier: Apache-2.0

package health

import (
	"errors"
	"net"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// An upstream with an IPv6 address, on a host without IPv6, fails with the same
// error as if all local ports were in use. It stays out of reach, so its probes count.
func TestShortage_AnAddressOutOfReachIsNone(t *testing.T) {
	runtime.LockOSThread() // without unlocking, so that the thread ends with the test
	if err := syscall.Unshare(syscall.CLONE_NEWNET); err != nil {
		t.Skipf("a network without any address needs more rights: %v", err)
	}
	for _, address := range []string{"[::1]:9", "[2001:db8::1]:80"} {
		dialer := net.Dialer{Timeout: time.Second}
		_, err := dialer.DialContext(t.Context(), "tcp", address)
		if !errors.Is(err, syscall.EADDRNOTAVAIL) {
			t.Fatalf("%s: got %v, so this tests nothing", address, err)
		}
		if got := Shortage(err); got != "" {
			t.Errorf("%v: taken for the shortage %q", err, got)
		}
		if got := ShortageIn(err.Error()); got != nil {
			t.Errorf("the text of it: taken for the shortage %q", got)
		}
	}
}

// If only the ports are in use, it is a shortage, also by the text alone.
func TestShortage_OfPortsIsOne(t *testing.T) {
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	err = &net.OpError{Op: "dial", Net: "tcp", Addr: server.Addr(), Err: syscall.EADDRNOTAVAIL}
	if Shortage(err) == "" || ShortageIn(err.Error()) == nil {
		t.Errorf("%v: taken for a failure of the other side", err)
	}
}
