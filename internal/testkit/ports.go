// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	mathrand "math/rand/v2"
	"net"
	"strconv"
	"sync"
	"testing"
)

var ports struct {
	sync.Mutex
	taken map[int]bool
}

// FreePort returns a port of the loopback address that is free and
// that no other call returned. It is below those that systems choose themselves, so that it stays free until the test uses it.
func FreePort(tb testing.TB) int {
	tb.Helper()
	ports.Lock()
	defer ports.Unlock()
	if ports.taken == nil {
		ports.taken = make(map[int]bool)
	}
	for range 1000 {
		port := 20000 + mathrand.IntN(12000)
		if ports.taken[port] {
			continue
		}
		ports.taken[port] = true
		address := Loopback(port)
		stream, err := net.Listen("tcp", address)
		if err != nil {
			continue
		}
		stream.Close()
		packets, err := net.ListenPacket("udp", address)
		if err != nil {
			continue
		}
		packets.Close()
		return port
	}
	tb.Fatal("no free port found")
	return 0
}

// Loopback is a port of the loopback address.
func Loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// Refused returns an address that refuses connections.
func Refused(tb testing.TB) string {
	tb.Helper()
	return Loopback(FreePort(tb))
}
