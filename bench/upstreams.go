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
	"sync/atomic"
	"syscall"
	"time"
)

// upstreamVariable has the addresses that this program serves as an upstream, in a
// process of its own, so that it can be killed and stopped.
const upstreamVariable = "ALIVE_BENCH_UPSTREAM"

// probePath is the path of probes.
const probePath = "/healthz"

// answerLatency is the latency of a slow upstream.
const answerLatency = 2 * time.Second

// upstreamState says how an upstream answers, and counts its requests.
type upstreamState struct {
	mode     atomic.Value // string: "", "503", "reset" or "slow"
	requests atomic.Int64 // without probes, but with those that were reset
	last     atomic.Int64 // when the last of them came, in Unix nanoseconds
}

// serveUpstream serves the addresses, and a control interface at a unix socket.
func serveUpstream(addresses []string, control string) error {
	s := new(upstreamState)
	s.mode.Store("")
	failed := make(chan error)
	for _, address := range addresses {
		listener, err := new(net.ListenConfig).Listen(context.Background(), "tcp", address)
		if err != nil {
			return err
		}
		server := &http.Server{Handler: s, ReadHeaderTimeout: time.Minute}
		go func() { failed <- server.Serve(resetting{listener, s}) }()
	}
	orders := http.NewServeMux()
	orders.HandleFunc("PUT /mode", func(_ http.ResponseWriter, r *http.Request) {
		mode, _ := io.ReadAll(r.Body)
		s.mode.Store(string(mode))
	})
	orders.HandleFunc("GET /count", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(upstreamCount{s.requests.Load(), s.last.Load()})
	})
	listener, err := new(net.ListenConfig).Listen(context.Background(), "unix", control)
	if err != nil {
		return err
	}
	go func() { failed <- (&http.Server{Handler: orders, ReadHeaderTimeout: time.Minute}).Serve(listener) }()
	return <-failed
}

// upstreamCount is what the control interface returns.
type upstreamCount struct{ Requests, Last int64 }

// ServeHTTP answers with the address that got the request.
func (s *upstreamState) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != probePath {
		s.seen()
	}
	switch s.mode.Load() {
	case "503":
		w.WriteHeader(http.StatusServiceUnavailable)
	case "slow":
		time.Sleep(answerLatency)
	case "reset":
		if conn, _, err := http.NewResponseController(w).Hijack(); err == nil {
			reset(conn)
		}
		return
	}
	w.Header().Set("Content-Type", "text/plain")
	_, _ = io.WriteString(w, r.Context().Value(http.LocalAddrContextKey).(net.Addr).String()) //nolint:gosec // a local address
}

// seen records a request.
func (s *upstreamState) seen() {
	s.requests.Add(1)
	s.last.Store(time.Now().UnixNano())
}

// resetting resets accepted connections while it is told to.
type resetting struct {
	net.Listener
	*upstreamState
}

// Accept returns the next connection that is not reset.
func (l resetting) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil || l.mode.Load() != "reset" {
			return conn, err
		}
		go l.refuse(conn)
	}
}

// refuse resets a connection after its first bytes, by which it recognizes probes.
func (l resetting) refuse(conn net.Conn) {
	first := make([]byte, len("GET "+probePath))
	_ = conn.SetReadDeadline(time.Now().Add(answerTimeout))
	_, _ = io.ReadFull(conn, first)
	reset(conn)
	if string(first) != "GET "+probePath {
		l.seen()
	}
}

// reset closes a connection by a reset.
func reset(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = conn.Close()
}

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
func (u *upstream) begin(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	_ = os.Remove(u.control)
	u.process, err = launch(filepath.Dir(u.control), exec.CommandContext(ctx, self), upstreamVariable+"="+strings.Join(u.addresses, ","), "ALIVE_BENCH_CONTROL="+u.control)
	if err != nil {
		return err
	}
	return within(ctx, 10*time.Second, "the upstream "+u.addresses[0]+" answers", func() bool {
		_, err := u.count(ctx)
		return err == nil
	})
}

// client returns a client of the control interface.
func (u *upstream) client() *http.Client {
	return &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", u.control)
	}}}
}

// set changes how the upstream answers.
func (u *upstream) set(ctx context.Context, mode string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodPut, "http://upstream/mode", strings.NewReader(mode))
	if err != nil {
		return err
	}
	response, err := u.client().Do(request)
	if err != nil {
		return err
	}
	return response.Body.Close()
}

// count returns how many requests the upstream got.
func (u *upstream) count(ctx context.Context) (c upstreamCount, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://upstream/count", nil)
	if err != nil {
		return c, err
	}
	response, err := u.client().Do(request)
	if err != nil {
		return c, err
	}
	defer response.Body.Close()
	return c, json.NewDecoder(response.Body).Decode(&c)
}

// swallow makes its address a black hole: connections are neither accepted nor refused.
func (u *upstream) swallow(ctx context.Context) error {
	u.kill()
	address, err := net.ResolveTCPAddr("tcp4", u.addresses[0])
	if err != nil {
		return err
	}
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	u.stuck = append(u.stuck, os.NewFile(uintptr(fd), "black hole"))
	to := &syscall.SockaddrInet4{Port: address.Port, Addr: [4]byte(address.IP.To4())}
	if err := errors.Join(syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1), syscall.Bind(fd, to), syscall.Listen(fd, 0)); err != nil {
		return err
	}
	for { // until the queue of the socket is full
		conn, err := (&net.Dialer{Timeout: 200 * time.Millisecond}).DialContext(ctx, "tcp", u.addresses[0])
		if err != nil {
			return nil
		}
		u.stuck = append(u.stuck, conn)
	}
}

// unswallow ends the black hole.
func (u *upstream) unswallow() {
	for _, c := range u.stuck {
		_ = c.Close()
	}
	u.stuck = nil
}

// close ends the upstream in any state.
func (u *upstream) close() {
	u.unswallow()
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
