// SPDX-License-Identifier: Apache-2.0

//go:build unix

package health

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// shortEnv says, in the environment, that this process is the one without descriptors.
const shortEnv = "ALIVE_TEST_SHORT"

// The errors of the operating system for a process that has no descriptor left, or uses
// an address that it does not have, are shortages. None outlasts its cause.
func TestShortage_EndsWithItsCause(t *testing.T) {
	if os.Getenv(shortEnv) == "" {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		child := exec.CommandContext(ctx, os.Args[0], "-test.run=^"+t.Name()+"$", "-test.count=1")
		child.Env = append(os.Environ(), shortEnv+"=1", "GOCOVERDIR="+t.TempDir())
		if out, err := child.CombinedOutput(); err != nil || !strings.Contains(string(out), "all tried\n") {
			t.Fatalf("%v:\n%s", err, out)
		}
		return
	}
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	tries := map[string]func() error{
		"connect": func() error {
			conn, err := new(net.Dialer).DialContext(ctx, "tcp", server.Addr().String())
			if err == nil {
				conn.Close()
			}
			return err
		},
		"look up": func() error {
			_, err := (&net.Resolver{PreferGo: true}).LookupHost(ctx, "app.invalid")
			return err
		},
		"look up by the system": func() error { return &net.DNSError{Name: "app", Err: "whatever the system says"} },
		"run":                   func() error { return exec.CommandContext(ctx, os.Args[0], "-test.list=^$").Run() },
	}
	limit := syscall.Rlimit{Cur: 64, Max: 64}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	var held []*os.File
	for {
		f, err := os.Open(os.DevNull)
		if err != nil {
			break
		}
		held = append(held, f)
	}
	for name, try := range tries {
		if err := try(); err == nil || Shortage(err) == "" {
			t.Errorf("%s without a descriptor: %v is taken for a failure of the other side", name, err)
		}
	}
	for _, f := range held {
		f.Close()
	}
	for name, try := range tries {
		if err := try(); Shortage(err) != "" {
			t.Errorf("%s: %v is taken for a shortage that is over", name, err)
		}
	}
	elsewhere := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1)}}
	if _, err := elsewhere.DialContext(ctx, "tcp", server.Addr().String()); err == nil || Shortage(err) == "" {
		t.Errorf("without a local address: %v is taken for a failure of the other side", err)
	}
	fmt.Println("all tried")
}
