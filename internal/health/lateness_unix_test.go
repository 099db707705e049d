// SPDX-License-Identifier: Apache-2.0

//go:build unix

package health

import (
	"bufio"
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

// stoppedEnv says, in the environment, that this process is the one that
// TestStoppedProcess_TurnsNoTargetDown stops.
const stoppedEnv = "ALIVE_TEST_STOPPED"

// stops is how often it is stopped: as often in a row as timeouts may count for
// nothing.
const stops = 2

// After a process was stopped, all its probes have timed out. That says nothing about the
// targets, so none goes down, however long the stop was.
// A target that does not answer while the process runs goes down.
func TestStoppedProcess_TurnsNoTargetDown(t *testing.T) {
	if os.Getenv(stoppedEnv) != "" {
		stopAndGoOn()
		return
	}
	const (
		pause = 2 * time.Second
		bound = 30 * time.Second
	)
	ctx, cancel := context.WithTimeout(t.Context(), bound)
	defer cancel()
	child := exec.CommandContext(ctx, os.Args[0], "-test.run=^"+t.Name()+"$", "-test.count=1")
	child.Env = append(os.Environ(), stoppedEnv+"=1", "GOCOVERDIR="+t.TempDir())
	child.Stderr = os.Stderr
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cancel()
		child.Wait()
	}()
	lines := make(chan string)
	go func() {
		defer close(lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			lines <- s.Text()
		}
	}()
	next := func() string {
		t.Helper()
		select {
		case line, ok := <-lines:
			if !ok {
				t.Fatalf("the child process ended, or was not done after %v", bound)
			}
			return line
		case <-time.After(bound):
			t.Fatalf("no line within %v", bound)
			return ""
		}
	}

	if got, want := next(), "unknown -> up"; got != want {
		t.Fatalf("got %q, want %q", got, want)
	}
	for i := range stops {
		if got, want := next(), "stopping"; got != want {
			t.Fatalf("stop %d: got %q, want %q", i, got, want)
		}
		time.Sleep(pause) // wall time in which the child does not run
		var line string
		for line == "" { // until it goes on, because it may stop a little late
			if err := child.Process.Signal(syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
			select {
			case got, ok := <-lines:
				if line = got; !ok {
					t.Fatalf("the child process ended, or was not done after %v", bound)
				}
			case <-time.After(100 * time.Millisecond):
			}
		}
		var by time.Duration
		text, found := strings.CutPrefix(line, "up, late by ")
		if found {
			by, err = time.ParseDuration(text)
		}
		if !found || err != nil || by < pause/2 {
			t.Fatalf("stop %d: got %q, want a target that is up, and late by about %v", i, line, pause)
		}
	}
	line := next()
	for strings.HasPrefix(line, "up, late by ") { // the whole machine may be slow
		line = next()
	}
	if want := "up -> down: no verdict within 400ms"; !strings.HasPrefix(line, want) {
		t.Fatalf("got %q, want %q: nothing stops it any more", line, want)
	}
}

// stopAndGoOn is the process that is stopped. Its target passes once. Then the target
// accepts connections and never answers. During
// the first two probes after that, this process stops, until it is continued.
func stopAndGoOn() {
	hole, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	defer hole.Close()
	target := NewTarget(Settings{
		Interval: 100 * time.Millisecond, FastInterval: 100 * time.Millisecond, DownInterval: 100 * time.Millisecond,
		Timeout: 400 * time.Millisecond, Passes: 1, Fails: stops,
	})
	probes := 0
	down := make(chan struct{})
	detach := target.Attach(Driver{
		Probe: func(ctx context.Context, _ bool) (bool, error) {
			var dialer net.Dialer
			conn, err := dialer.DialContext(ctx, "tcp", hole.Addr().String())
			if err != nil {
				return false, err
			}
			defer conn.Close()
			if probes++; probes == 1 {
				return false, nil
			}
			if probes <= 1+stops {
				fmt.Println("stopping")
				if err := syscall.Kill(os.Getpid(), syscall.SIGSTOP); err != nil {
					panic(err)
				}
			}
			defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
			_, err = conn.Read(make([]byte, 1))
			return false, err
		},
		Inconclusive: func(why *InconclusiveError) { fmt.Printf("%v, late by %v\n", target.Status(), why.Late) },
		Report: func(change Transition) {
			if change.To == Down {
				fmt.Printf("%v -> %v: %s\n", change.From, change.To, change.Reason)
				close(down)
				return
			}
			fmt.Printf("%v -> %v\n", change.From, change.To)
		},
	}, 0)
	<-down
	detach()
}
