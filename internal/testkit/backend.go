// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// Conduct is how a backend behaves.
type Conduct int

const (
	// Well answers everything.
	Well Conduct = iota
	// Sick answers requests, but its check with 503.
	Sick
	// Broken passes its check, but answers requests with 500.
	Broken
	// Refusing does not listen.
	Refusing
	// Hanging accepts and never answers.
	Hanging
	// Resetting accepts and resets the connection.
	Resetting
	// Truncating closes the connection in the middle of the answer.
	Truncating
	// Unavailable answers everything with 503.
	Unavailable
	// Shallow passes its check, but answers requests with 502.
	Shallow
)

// Backend is a web server on a port of its own that can be put into any mode
// while it runs. It answers requests with its name; paths that begin with
// /healthz are checks.
type Backend struct {
	t    testing.TB
	Name string
	Addr string
	Hook func(*http.Request) // nil, or called before an answer

	mu       sync.Mutex
	mode     Conduct
	changed  chan struct{} // closed when the mode does
	answer   func(http.ResponseWriter, *http.Request) bool
	requests int            // all but probes
	probes   map[string]int // by path
	since    History        // since the mode changed
	server   *http.Server   // nil while refusing
	served   chan struct{}  // closed when server has ended
}

// History is what a backend has seen since its mode changed.
type History struct {
	Probes   int
	Requests int
	Earlier  int // probes before the first of the requests
}

// StartBackend runs a backend until the test ends. The hook may be nil.
func StartBackend(tb testing.TB, name string, hook func(*http.Request)) *Backend {
	tb.Helper()
	b := &Backend{
		t: tb, Name: name, Addr: Loopback(FreePort(tb)), Hook: hook,
		changed: make(chan struct{}), probes: make(map[string]int),
	}
	b.open()
	tb.Cleanup(func() { b.Set(Refusing) })
	return b
}

// StartBackends runs some that answer everything.
func StartBackends(tb testing.TB, names ...string) (backends []*Backend) {
	tb.Helper()
	for _, name := range names {
		backends = append(backends, StartBackend(tb, name, nil))
	}
	return backends
}

// StartLoopbacks runs backends on 127.0.0.1, 127.0.0.2 and so on, all on one
// port, until the test ends.
func StartLoopbacks(tb testing.TB, modes ...Conduct) (port int, backends []*Backend) {
	tb.Helper()
	if runtime.GOOS != "linux" {
		tb.Skip("127.0.0.2 and so on belong to the loopback interface on Linux only")
	}
	free := func(port int) bool {
		for i := range modes {
			stream, err := net.Listen("tcp", loopbackOf(i, port))
			if err != nil {
				return false
			}
			stream.Close()
		}
		return true
	}
	Eventually(tb, Patience, "a port is free on all addresses", func() bool {
		port = FreePort(tb)
		return free(port)
	})
	for i, m := range modes {
		b := &Backend{
			t: tb, Name: string(rune('a' + i)), Addr: loopbackOf(i, port),
			mode: m, changed: make(chan struct{}), probes: make(map[string]int),
		}
		if m != Refusing {
			b.open()
		}
		tb.Cleanup(func() { b.Set(Refusing) })
		backends = append(backends, b)
	}
	return port, backends
}

func loopbackOf(i, port int) string {
	return net.JoinHostPort(fmt.Sprintf("127.0.0.%d", i+1), strconv.Itoa(port))
}

// Addresses are those of the backends, as reverse_proxy takes them.
func Addresses(backends ...*Backend) string {
	var list []string
	for _, b := range backends {
		list = append(list, b.Addr)
	}
	return strings.Join(list, " ")
}

func (b *Backend) open() {
	b.t.Helper()
	var stream net.Listener
	Eventually(b.t, Patience, b.Addr+" is free", func() bool {
		var err error
		stream, err = net.Listen("tcp", b.Addr)
		return err == nil
	})
	b.server, b.served = &http.Server{Handler: b, ErrorLog: Discard}, make(chan struct{})
	go func(server *http.Server, served chan struct{}) {
		defer close(served)
		_ = server.Serve(resettable{stream, b})
	}(b.server, b.served)
}

// Set changes the mode. What hangs is cut off.
func (b *Backend) Set(m Conduct) {
	b.t.Helper()
	b.mu.Lock()
	b.mode, b.since = m, History{}
	close(b.changed)
	b.changed = make(chan struct{})
	b.mu.Unlock()
	switch {
	case m == Refusing && b.server != nil:
		_ = b.server.Close()
		<-b.served
		b.server = nil
	case m != Refusing && b.server == nil:
		b.open()
	}
}

// Answer sets what answers requests, other than probes, from now on: a function that reports
// whether it did. If it did not, the backend answers as its conduct says.
func (b *Backend) Answer(answer func(http.ResponseWriter, *http.Request) bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.answer = answer
}

// is reports the mode and a channel that is closed when it changes.
func (b *Backend) is() (Conduct, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.mode, b.changed
}

// Conduct returns how it behaves.
func (b *Backend) Conduct() Conduct {
	m, _ := b.is()
	return m
}

// Seen returns what the backend has seen: the number of requests, and of
// probes.
func (b *Backend) Seen() (requests, probes int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, n := range b.probes {
		probes += n
	}
	return b.requests, probes
}

// Probed returns the number of probes of a path.
func (b *Backend) Probed(path string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.probes[path]
}

// History returns what was seen since the mode changed.
func (b *Backend) History() History {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.since
}

// ServeHTTP answers requests and probes as the conduct of the backend says.
func (b *Backend) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	check := strings.HasPrefix(r.URL.Path, "/healthz")
	b.mu.Lock()
	m, changed, answer := b.mode, b.changed, b.answer
	if check {
		b.probes[r.URL.Path]++
		b.since.Probes++
	} else {
		if b.since.Requests == 0 {
			b.since.Earlier = b.since.Probes
		}
		b.since.Requests++
		b.requests++
	}
	b.mu.Unlock()

	switch m {
	case Hanging:
		select {
		case <-changed:
		case <-r.Context().Done():
		}
		panic(http.ErrAbortHandler)
	case Resetting:
		if conn, _, err := http.NewResponseController(w).Hijack(); err == nil {
			abort(conn)
		}
		return
	case Truncating:
		if conn, _, err := http.NewResponseController(w).Hijack(); err == nil {
			_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nthe beginning")
			conn.Close()
		}
		return
	default: // the others answer
	}
	if b.Hook != nil {
		b.Hook(r)
	}
	if answer != nil && !check && answer(w, r) {
		return
	}
	switch {
	case m == Unavailable:
		http.Error(w, "no server", http.StatusServiceUnavailable)
	case m == Shallow && !check:
		http.Error(w, "no database", http.StatusBadGateway)
	case m == Sick && check:
		http.Error(w, "no database", http.StatusServiceUnavailable)
	case m == Broken && !check:
		http.Error(w, "no idea", http.StatusInternalServerError)
	default:
		_, _ = io.WriteString(w, b.Name)
	}
}

// resettable is the listener of a backend.
type resettable struct {
	net.Listener
	b *Backend
}

// Accept returns the next connection. It resets those of a backend that resets.
func (l resettable) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if m, _ := l.b.is(); m != Resetting {
			return conn, nil
		}
		abort(conn)
	}
}

// Discard is the error log of servers with clients that fail on purpose.
var Discard = log.New(io.Discard, "", 0)

// abort resets a connection.
func abort(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	conn.Close()
}
