// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// The environment of this program as an upstream, in a process of its own, so that it can
// be killed and stopped.
const (
	upstreamVariable = "ALIVE_BENCH_UPSTREAM"  // the addresses to serve
	controlVariable  = "ALIVE_BENCH_CONTROL"   // the unix socket of its control interface
	listenVariable   = "ALIVE_BENCH_LISTEN_AT" // when it begins to listen, in Unix nanoseconds; empty: at once
)

// probePath is the path of probes.
const probePath = "/healthz"

// answerLatency is the latency of a slow upstream.
const answerLatency = 2 * time.Second

// Modes of an upstream.
const (
	normal        = ""
	unavailable   = "503"            // it answers 503
	slow          = "slow"           // it answers after answerLatency
	resets        = "reset"          // it accepts connections and resets them
	refuses       = "refuse"         // it closes its listeners and idle connections, and ends what it has begun
	limited       = "limited"        // it has a capacity, and answers 503 beyond it; not to probes
	limitedProbes = "limited-probes" // to probes, too
	narrow        = "narrow"         // hardly any connection waits to be accepted; others get no answer
)

// upstreamState says how an upstream answers, and counts its requests.
type upstreamState struct {
	mode     atomic.Value // string
	requests atomic.Int64 // without probes, but with those that were reset
	last     atomic.Int64 // when the last of them came, in Unix nanoseconds
	now      atomic.Int64 // how many there are now, until just before the end of the answer
	most     atomic.Int64 // the largest number at once
	capacity capacity

	addresses []string
	failed    chan error // of a server that cannot go on

	mu        sync.Mutex // guards the following
	servers   []*http.Server
	listeners []*net.TCPListener
}

// serveUpstream serves the addresses, and a control interface at a unix socket.
func serveUpstream(addresses []string, control, at string) error {
	if at != "" {
		nanoseconds, err := strconv.ParseInt(at, 10, 64)
		if err != nil {
			return err
		}
		time.Sleep(time.Until(time.Unix(0, nanoseconds)))
	}
	s := &upstreamState{addresses: addresses, failed: make(chan error), capacity: newCapacity()}
	s.mode.Store(normal)
	if err := s.listen(); err != nil {
		return err
	}
	orders := http.NewServeMux()
	orders.HandleFunc("PUT /mode", func(w http.ResponseWriter, r *http.Request) {
		mode, _ := io.ReadAll(r.Body)
		if err := s.change(string(mode)); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})
	orders.HandleFunc("GET /count", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(upstreamCount{s.requests.Load(), s.last.Load(), s.most.Load()})
	})
	listener, err := new(net.ListenConfig).Listen(context.Background(), "unix", control)
	if err != nil {
		return err
	}
	go func() { s.failed <- (&http.Server{Handler: orders, ReadHeaderTimeout: time.Minute}).Serve(listener) }()
	return <-s.failed
}

// listen begins to serve all addresses.
func (s *upstreamState) listen() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, address := range s.addresses {
		listener, err := new(net.ListenConfig).Listen(context.Background(), "tcp", address)
		if err != nil {
			return err
		}
		server := &http.Server{Handler: s, ReadHeaderTimeout: time.Minute}
		s.servers = append(s.servers, server)
		s.listeners = append(s.listeners, listener.(*net.TCPListener))
		go func() {
			if err := server.Serve(resetting{listener, s}); !errors.Is(err, http.ErrServerClosed) {
				s.failed <- err
			}
		}()
	}
	return nil
}

// change changes the mode, and the listeners where a mode has none.
func (s *upstreamState) change(mode string) error {
	before := s.mode.Swap(mode)
	switch {
	case mode == refuses:
		s.mu.Lock()
		servers := s.servers
		s.servers, s.listeners = nil, nil
		s.mu.Unlock()
		for _, server := range servers {
			if err := server.Shutdown(context.Background()); err != nil {
				return err
			}
		}
	case before == refuses:
		return s.listen()
	case mode == narrow:
		return s.queue(0)
	case before == narrow:
		return s.queue(4096)
	}
	return nil
}

// queue changes how many connections may wait to be accepted.
func (s *upstreamState) queue(length int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, listener := range s.listeners {
		raw, err := listener.SyscallConn()
		if err != nil {
			return err
		}
		var failed error
		err = raw.Control(func(fd uintptr) { failed = syscall.Listen(int(fd), length) })
		if err := errors.Join(err, failed); err != nil {
			return err
		}
	}
	return nil
}

// upstreamCount is what the control interface returns.
type upstreamCount struct{ Requests, Last, Most int64 }

// ServeHTTP answers with the address that got the request.
func (s *upstreamState) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	probe := r.URL.Path == probePath
	end := func() {}
	if !probe {
		s.seen()
		s.begin()
		end = func() { s.now.Add(-1) }
	}
	switch mode := s.mode.Load(); mode {
	case unavailable:
		w.WriteHeader(http.StatusServiceUnavailable)
	case slow:
		time.Sleep(answerLatency)
	case resets:
		if conn, _, err := http.NewResponseController(w).Hijack(); err == nil {
			reset(conn)
		}
		end()
		return
	case limited, limitedProbes:
		if (!probe || mode == limitedProbes) && !s.capacity.work(workOf(r)) {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}
	w.Header().Set("Content-Type", "text/plain")
	end()
	_, _ = io.WriteString(w, r.Context().Value(http.LocalAddrContextKey).(net.Addr).String()) //nolint:gosec // a local address
}

// seen records a request.
func (s *upstreamState) seen() {
	s.requests.Add(1)
	s.last.Store(time.Now().UnixNano())
}

// begin records that there is one request more.
func (s *upstreamState) begin() {
	now := s.now.Add(1)
	for most := s.most.Load(); now > most && !s.most.CompareAndSwap(most, now); most = s.most.Load() {
	}
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
		if err != nil || l.mode.Load() != resets {
			return conn, err
		}
		go l.refuse(conn)
	}
}

// refuse resets a connection after its first bytes, by which it recognizes probes.
func (l resetting) refuse(conn net.Conn) {
	first := make([]byte, len("GET "+probePath))
	_ = conn.SetReadDeadline(time.Now().Add(answerTimeout))
	n, _ := io.ReadFull(conn, first)
	reset(conn)
	if n > 0 && string(first) != "GET "+probePath { // a check by TCP sends nothing
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

// The capacity of an upstream in the modes with a limit.
const (
	workers  = 5                     // requests that it serves at once
	waiting  = 10                    // requests that wait for a worker
	meanWork = 50 * time.Millisecond // of one request
)

// workHeader says how long an upstream with a limit works on a request, in microseconds.
// Requests without it, as probes are, take a millisecond.
const workHeader = "Bench-Work"

// workOf returns how long a request takes.
func workOf(r *http.Request) time.Duration {
	if n, err := strconv.ParseInt(r.Header.Get(workHeader), 10, 64); err == nil {
		return time.Duration(n) * time.Microsecond
	}
	return time.Millisecond
}

// capacity is a bounded number of workers, and of places to wait for them.
type capacity struct{ places, workers chan struct{} }

func newCapacity() capacity {
	return capacity{make(chan struct{}, workers+waiting), make(chan struct{}, workers)}
}

// work works for a time. It returns false at once if all places are taken.
func (c capacity) work(d time.Duration) bool {
	select {
	case c.places <- struct{}{}:
	default:
		return false
	}
	c.workers <- struct{}{}
	time.Sleep(d)
	<-c.workers
	<-c.places
	return true
}
