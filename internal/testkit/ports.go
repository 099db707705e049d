// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	mathrand "math/rand/v2"
	"net"
	"strconv"
	"sync"
	"testing"
)

// Ports come in blocks, each of which belongs to one process: else the tests of another
// package could listen where a test expects that nothing does. They are below those that systems
// choose themselves.
const (
	firstPort = 20000
	blockSize = 200
	blocks    = 60
)

var ports struct {
	sync.Mutex
	free  []int            // of the blocks of this process
	holds []net.PacketConn // at the first port of each, until the process ends
}

// FreePort returns a port of the loopback address that is free, that no other call returned, and
// that no other process of tests uses.
func FreePort(tb testing.TB) int {
	tb.Helper()
	ports.Lock()
	defer ports.Unlock()
	for range 1000 {
		if len(ports.free) == 0 {
			takeBlock()
			continue
		}
		port := ports.free[0]
		ports.free = ports.free[1:]
		if isFree(port) {
			return port
		}
	}
	tb.Fatalf("no free port found, after %d ports; other processes of tests may have the others", blockSize*len(ports.holds))
	return 0
}

// takeBlock takes a block of ports, unless a process has it already. ports must be locked.
func takeBlock() {
	first := firstPort + blockSize*mathrand.IntN(blocks)
	hold, err := net.ListenPacket("udp", Loopback(first))
	if err != nil {
		return
	}
	ports.holds = append(ports.holds, hold)
	for port := first + 1; port < first+blockSize; port++ {
		ports.free = append(ports.free, port)
	}
}

// isFree reports whether a server can listen at a port.
func isFree(port int) bool {
	stream, err := net.Listen("tcp", Loopback(port))
	if err != nil {
		return false
	}
	stream.Close()
	packets, err := net.ListenPacket("udp", Loopback(port))
	if err != nil {
		return false
	}
	packets.Close()
	return true
}

// Loopback is a port of the loopback address.
func Loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// Refused returns an address that refuses connections.
func Refused(tb testing.TB) string {
	tb.Helper()
	return Loopback(FreePort(tb))
}
