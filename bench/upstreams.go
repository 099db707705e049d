// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// upstream is a process that serves some addresses.
type upstream struct {
	addresses []string
	control   string
	*process
	stuck []io.Closer // connections that make its address a black hole
}

// startUpstream runs an upstream, and returns when it answers.
func startUpstream(ctx context.Context, folder string, addresses ...string) (*upstream, error) {
	u := &upstream{addresses: addresses, control: filepath.Join(folder, strings.NewReplacer(".", "-", ":", "-").Replace(addresses[0])+".sock")}
	return u, u.begin(ctx)
}

// startEach runs an upstream for each address, and returns a function that ends all of
// them.
func startEach(ctx context.Context, folder string, addresses []string) (all []*upstream, end func(), err error) {
	end = func() {
		for _, u := range all {
			u.close()
		}
	}
	for _, address := range addresses {
		u, err := startUpstream(ctx, folder, address)
		if err != nil {
			end()
			return nil, nil, err
		}
		all = append(all, u)
	}
	return all, end, nil
}

// begin starts the process.
func (u *upstream) begin(ctx context.Context) error { return u.beginAt(ctx, time.Time{}) }

// beginAt starts the process, which begins to listen at a time. It returns when the
// process listens.
func (u *upstream) beginAt(ctx context.Context, at time.Time) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	_ = os.Remove(u.control)
	environment := []string{upstreamVariable + "=" + strings.Join(u.addresses, ","), controlVariable + "=" + u.control}
	if !at.IsZero() {
		environment = append(environment, fmt.Sprintf("%s=%d", listenVariable, at.UnixNano()))
	}
	u.process, err = launch(filepath.Dir(u.control), exec.CommandContext(ctx, self), environment...)
	if err != nil {
		return err
	}
	return within(ctx, 10*time.Second, "the upstream "+u.addresses[0]+" answers", func() bool {
		_, err := u.count(ctx)
		return err == nil
	})
}

// overUnix returns a client of a unix socket.
func overUnix(path string) *http.Client {
	return &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}}
}

// set changes how the upstream answers.
func (u *upstream) set(ctx context.Context, mode string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodPut, "http://upstream/mode", strings.NewReader(mode))
	if err != nil {
		return err
	}
	response, err := overUnix(u.control).Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		text, err := io.ReadAll(response.Body)
		return errors.Join(fmt.Errorf("the mode '%s' of an upstream: %s", mode, text), err)
	}
	return nil
}

// count returns how many requests the upstream got.
func (u *upstream) count(ctx context.Context) (c upstreamCount, err error) {
	err = getJSON(ctx, overUnix(u.control), "http://upstream/count", &c)
	return c, err
}

// getJSON reads an answer.
func getJSON(ctx context.Context, client *http.Client, url string, into any) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	return json.NewDecoder(response.Body).Decode(into)
}

// swallow makes its address a black hole: open connections get no answer, and new ones are
// neither accepted nor refused.
func (u *upstream) swallow(ctx context.Context) error {
	if err := errors.Join(u.set(ctx, narrow), u.cmd.Process.Signal(syscall.SIGSTOP)); err != nil {
		return err
	}
	for { // until the queue of the socket is full
		conn, err := (&net.Dialer{Timeout: 200 * time.Millisecond}).DialContext(ctx, "tcp", u.addresses[0])
		if err != nil {
			return ctx.Err()
		}
		u.stuck = append(u.stuck, conn)
	}
}

// unswallow ends the black hole.
func (u *upstream) unswallow(ctx context.Context) error {
	u.leave()
	return errors.Join(u.cmd.Process.Signal(syscall.SIGCONT), u.set(ctx, normal))
}

// leave closes the connections that make its address a black hole.
func (u *upstream) leave() {
	for _, c := range u.stuck {
		_ = c.Close()
	}
	u.stuck = nil
}

// close ends the upstream in any state.
func (u *upstream) close() {
	u.leave()
	_ = u.cmd.Process.Signal(syscall.SIGCONT)
	u.kill()
}

// within waits until cond becomes true.
func within(ctx context.Context, limit time.Duration, what string, cond func() bool) error {
	for began := time.Now(); !cond(); {
		if time.Since(began) > limit {
			return fmt.Errorf("not in %s: %s", limit, what)
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}
