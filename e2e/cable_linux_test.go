// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// cable carries packets between two hosts through this process, so that it can lose and
// delay them, and be cut, on any kernel.
type cable struct {
	ends          [2]*os.File // what is written to one end is received by its host
	state         atomic.Pointer[condition]
	carried, lost atomic.Int64
}

// condition is the state of a cable.
type condition struct {
	cut           [2]bool // no packet is carried from this end
	loss          float64 // the share of packets that get lost
	delay, jitter time.Duration
}

// newCable makes a cable. Its ends are network devices with these names, one for each
// host.
func newCable(t *testing.T, names [2]string) *cable {
	t.Helper()
	c := new(cable)
	c.is(condition{})
	for i, name := range names {
		end, err := openTUN(name)
		if err != nil {
			skip(t, "devices that this process can carry packets for are not permitted here: %v", err)
		}
		t.Cleanup(func() { end.Close() })
		c.ends[i] = end
	}
	for i := range c.ends {
		go c.carry(i)
	}
	return c
}

// is changes the condition of the cable.
func (c *cable) is(now condition) { c.state.Store(&now) }

// carry carries packets from one end to the other until the cable is closed.
func (c *cable) carry(from int) {
	packet := make([]byte, 1<<16)
	for {
		n, err := c.ends[from].Read(packet)
		if err != nil {
			return
		}
		now := c.state.Load()
		if now.cut[from] || rand.Float64() < now.loss {
			c.lost.Add(1)
			continue
		}
		c.carried.Add(1)
		if now.delay == 0 {
			_, _ = c.ends[1-from].Write(packet[:n])
			continue
		}
		late := append([]byte(nil), packet[:n]...)
		time.AfterFunc(now.delay+time.Duration((2*rand.Float64()-1)*float64(now.jitter)), func() { _, _ = c.ends[1-from].Write(late) })
	}
}

// openTUN makes a network device and returns the file that its packets are read from
// and written to.
func openTUN(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("/dev/net/tun: %w", err)
	}
	request, err := unix.NewIfreq(name)
	if err == nil {
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}
