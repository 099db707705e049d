// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// hosts are network namespaces. All but one are connected by a cable to the one in the
// middle.
type hosts struct {
	t      *testing.T
	names  []string
	cables map[string]*cable // by the host at the end, whose device is the second end
}

// newHosts makes the hosts, and connects "caddy" to the others: host i of them has the
// address 10.77.i.2, and reaches caddy at 10.77.i.1.
func newHosts(t *testing.T, others ...string) *hosts {
	t.Helper()
	n := &hosts{t: t, cables: make(map[string]*cable)}
	if _, err := exec.LookPath("ip"); err != nil {
		skip(t, "ip (Debian package iproute2) is not installed")
	}
	t.Cleanup(func() {
		for _, host := range n.names {
			_ = exec.Command("ip", "netns", "del", n.name(host)).Run()
		}
	})
	for _, host := range append([]string{"caddy"}, others...) {
		if out, err := exec.CommandContext(t.Context(), "ip", "netns", "add", n.name(host)).CombinedOutput(); err != nil {
			skip(t, "network namespaces are not permitted here: %s", bytes.TrimSpace(out))
		}
		n.names = append(n.names, host)
		n.must(host, "ip link set lo up")
	}
	for i, host := range others {
		names := [2]string{fmt.Sprintf("al%d-%da", os.Getpid(), i), fmt.Sprintf("al%d-%db", os.Getpid(), i)}
		n.cables[host] = newCable(t, names)
		for end, at := range []string{"caddy", host} {
			n.must("", fmt.Sprintf("ip link set %s netns %s", names[end], n.name(at)))
			n.must(at, fmt.Sprintf("ip addr add 10.77.%d.%d/24 dev %s", i, end+1, names[end]))
			n.must(at, fmt.Sprintf("ip link set %s up", names[end]))
		}
	}
	return n
}

func (n *hosts) name(host string) string { return fmt.Sprintf("alive%d-%s", os.Getpid(), host) }

// command returns a command that runs at a host, or at the host of the test if it is
// "".
func (n *hosts) command(ctx context.Context, host string, args ...string) *exec.Cmd {
	if host != "" {
		args = append([]string{"ip", "netns", "exec", n.name(host)}, args...)
	}
	return exec.CommandContext(ctx, args[0], args[1:]...)
}

// must runs a command at a host, and fails the test if the command fails.
func (n *hosts) must(host, command string) {
	n.t.Helper()
	out, err := n.command(n.t.Context(), host, strings.Fields(command)...).CombinedOutput()
	if err != nil {
		n.t.Fatalf("%s: %s: %v: %s", host, command, err, out)
	}
}

// at runs a function of this process at a host, where it makes its sockets.
func (n *hosts) at(host string, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // without unlocking, so that the thread ends with this goroutine
		done <- func() error {
			namespace, err := os.Open("/run/netns/" + n.name(host))
			if err != nil {
				return err
			}
			defer namespace.Close()
			if err := unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNET); err != nil {
				return err
			}
			return f()
		}()
	}()
	return <-done
}

// from returns a dialer that connects from a host.
func (n *hosts) from(host string) dialer {
	return func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		err = n.at(host, func() (err error) {
			conn, err = new(net.Dialer).DialContext(ctx, network, address)
			return err
		})
		return conn, err
	}
}

// listen listens at a host.
func (n *hosts) listen(host, address string) net.Listener {
	n.t.Helper()
	var listener net.Listener
	err := n.at(host, func() (err error) {
		listener, err = new(net.ListenConfig).Listen(n.t.Context(), "tcp", address)
		return err
	})
	if err != nil {
		n.t.Fatal(err)
	}
	return listener
}
