// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// fault is what is wrong with a simulated server.
type fault int

const (
	working  fault = iota
	crashed        // the process is gone: connections are refused
	stopped        // the process is halted, as by SIGSTOP: the kernel still accepts connections
	vanished       // packets are dropped
	answers503
	resets       // connections are accepted, then reset
	shallow      // every request gets 502, and every probe passes
	shallowReset // every request is reset, and every probe passes
)

const latency = time.Millisecond // of a server that has nothing to do

var (
	errRefused     = &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	errDialTimeout = &net.OpError{Op: "dial", Net: "tcp", Err: os.ErrDeadlineExceeded}
	errReset       = &net.OpError{Op: "read", Net: "tcp", Err: os.NewSyscallError("read", syscall.ECONNRESET)}
)

// headerTimeoutError is the error of net/http where the answer's header does not come in time.
type headerTimeoutError struct{}

func (headerTimeoutError) Error() string   { return "net/http: timeout awaiting response headers" }
func (headerTimeoutError) Timeout() bool   { return true }
func (headerTimeoutError) Temporary() bool { return true }

// simServer is a server in virtual time. It has workers and a queue before them, and a
// request that finds the queue full gets 503.
type simServer struct {
	network *simNetwork
	address string
	queue   int  // how many requests may wait; below 0 for any number
	probed  bool // probes take the same workers as requests

	mu      sync.Mutex // guards what follows
	fault   fault
	broken  chan struct{}   // closed when all connections break
	resumed chan struct{}   // closed when a stopped process goes on
	idle    int             // connections that are kept
	free    []time.Time     // when each worker has nothing left to do
	starts  []time.Time     // when the work on requests that wait begins
	halted  time.Time       // when it was stopped
	reached []time.Duration // when requests came
	probes  []time.Duration
}

// simNetwork has all simulated servers. It is the transport of a handler.
type simNetwork struct {
	began         time.Time
	servers       map[string]*simServer
	dialTimeout   time.Duration
	headerTimeout time.Duration // 0 for none
}

// RoundTrip does what net/http does: it takes a kept connection or makes one, and asks
// once more if a kept connection breaks under a request that is safe to repeat.
func (n *simNetwork) RoundTrip(r *http.Request) (*http.Response, error) {
	dial, ok := reverseproxy.GetDialInfo(r.Context())
	if !ok {
		return nil, errors.New("a request without dial info")
	}
	s := n.servers[dial.Address]
	for {
		reused, err := s.connect(r.Context())
		if err != nil {
			return nil, err
		}
		trace := httptrace.ContextClientTrace(r.Context())
		if trace != nil && trace.GotConn != nil {
			trace.GotConn(httptrace.GotConnInfo{Reused: reused, WasIdle: reused})
		}
		if trace != nil && trace.WroteRequest != nil {
			trace.WroteRequest(httptrace.WroteRequestInfo{})
		}
		status, err := s.answer(r.Context(), jobOf(r.Context()), reused)
		if err != nil {
			if reused && r.Method == http.MethodGet && (errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET)) {
				continue
			}
			return nil, err
		}
		if trace != nil && trace.GotFirstResponseByte != nil {
			trace.GotFirstResponseByte()
		}
		return &http.Response{
			Status: http.StatusText(status), StatusCode: status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
			Header: make(http.Header), Body: http.NoBody, Request: r,
		}, nil
	}
}

// connect takes a kept connection, or makes one.
func (s *simServer) connect(ctx context.Context) (reused bool, err error) {
	s.mu.Lock()
	fault := s.fault
	if s.idle > 0 {
		s.idle--
		s.mu.Unlock()
		return true, nil
	}
	s.mu.Unlock()
	switch fault {
	case crashed:
		return false, reverseproxy.NewDialError(errRefused)
	case vanished:
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-time.After(s.network.dialTimeout):
			return false, reverseproxy.NewDialError(errDialTimeout)
		}
	}
	return false, nil
}

// answer is what a request over a connection gets. The job says what it asks for.
func (s *simServer) answer(ctx context.Context, j job, reused bool) (status int, err error) {
	s.mu.Lock()
	s.reached = append(s.reached, time.Since(s.network.began))
	broken, resumed, fault := s.broken, s.resumed, s.fault
	if fault == crashed || j.kind == stale && reused {
		s.mu.Unlock()
		return 0, io.EOF
	}
	end := time.Now().Add(latency)
	status = j.status()
	switch {
	case fault == answers503:
		status = http.StatusServiceUnavailable
	case fault == shallow:
		status = http.StatusBadGateway
	case fault == resets || fault == shallowReset:
		status = 0
	case fault == stopped || fault == vanished:
	case j.kind == slow || j.kind == longPoll || j.kind == leaving:
		end = end.Add(j.work) // no worker is busy with it
	case j.work > 0:
		var shed bool
		if end, shed = s.admit(j.work); shed {
			status = http.StatusServiceUnavailable
		}
	}
	s.mu.Unlock()
	return s.wait(ctx, end, status, broken, resumed)
}

// admit gives a request its place in the queue and returns when it is answered. s.mu must
// be held.
func (s *simServer) admit(work time.Duration) (end time.Time, shed bool) {
	now := time.Now()
	for len(s.starts) > 0 && !s.starts[0].After(now) {
		s.starts = s.starts[1:]
	}
	worker := 0
	for i, at := range s.free {
		if at.Before(s.free[worker]) {
			worker = i
		}
	}
	start := s.free[worker]
	if !start.After(now) {
		start = now
	} else {
		if s.queue >= 0 && len(s.starts) >= s.queue {
			return now.Add(latency), true
		}
		s.starts = append(s.starts, start)
	}
	end = start.Add(work)
	s.free[worker] = end
	return end, false
}

// wait waits for the answer, which may never come.
func (s *simServer) wait(ctx context.Context, end time.Time, status int, broken, resumed chan struct{}) (int, error) {
	var tooLate <-chan time.Time
	if t := s.network.headerTimeout; t > 0 {
		timer := time.NewTimer(t)
		defer timer.Stop()
		tooLate = timer.C
	}
	answered := time.NewTimer(time.Until(end))
	defer answered.Stop()
	for {
		select {
		case <-broken:
			return 0, errReset
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-tooLate:
			return 0, headerTimeoutError{}
		case <-answered.C:
		}
		s.mu.Lock()
		fault := s.fault
		if fault != stopped && fault != vanished {
			if status != 0 {
				s.idle++
			}
			s.mu.Unlock()
			if status == 0 {
				return 0, errReset
			}
			return status, nil
		}
		if s.resumed != resumed {
			resumed = s.resumed
		}
		s.mu.Unlock()
		select {
		case <-resumed:
			answered.Reset(latency)
		case <-broken:
			return 0, errReset
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-tooLate:
			return 0, headerTimeoutError{}
		}
	}
}

// become makes the server fail in a way, or work again.
func (s *simServer) become(f fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	before := s.fault
	s.fault = f
	if f == stopped {
		s.halted = now
	}
	if before == stopped || before == vanished { // what it had left to do takes as long as before
		for i, at := range s.free {
			if before == stopped && at.After(s.halted) {
				s.free[i] = at.Add(now.Sub(s.halted))
			}
		}
		close(s.resumed)
		s.resumed = make(chan struct{})
	}
	if f == crashed || f == resets || f == shallowReset || before == vanished {
		close(s.broken)
		s.broken = make(chan struct{})
		s.idle, s.starts = 0, nil
		for i := range s.free {
			s.free[i] = now
		}
	}
}

// lose breaks all connections once, as when one that carries many requests is lost.
func (s *simServer) lose() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.broken)
	s.broken, s.idle = make(chan struct{}), 0
}

// probe makes a health check as an HTTP request on a connection of its own.
func (s *simServer) probe(ctx context.Context, connectOnly bool) error {
	s.mu.Lock()
	s.probes = append(s.probes, time.Since(s.network.began))
	fault, probed := s.fault, s.probed
	var end time.Time
	var shed bool
	if fault == working && probed {
		end, shed = s.admit(latency)
	}
	s.mu.Unlock()
	switch {
	case fault == crashed:
		return errRefused
	case fault == vanished, fault == stopped && !connectOnly:
		<-ctx.Done()
		return ctx.Err()
	case connectOnly:
	case fault == resets:
		return errReset
	case fault == answers503 || shed:
		return errors.New("status 503")
	case !end.IsZero():
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Until(end)):
		}
		return nil
	}
	time.Sleep(latency)
	return nil
}

// requests returns when requests came in a period.
func (s *simServer) requests(from, to time.Duration) (at []time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.reached {
		if t >= from && t < to {
			at = append(at, t)
		}
	}
	return at
}

// probedAt returns when the probes began.
func (s *simServer) probedAt() []time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.probes)
}

// kind is what kind of a request a job is.
type kind int

const (
	normal      kind = iota
	slow             // an endpoint that takes its time and no worker
	longPoll         // the same, and the answer is long in coming by design
	poison502        // every server answers 502
	poisonReset      // every server resets the connection
	stale            // a kept connection ends at the moment at which it is used
	leaving          // the client leaves before the answer
	kinds
)

// job is what a simulated request asks for.
type job struct {
	kind    kind
	work    time.Duration // of a worker
	post    bool
	patient time.Duration // after which the client leaves, 0 for never
}

func (j job) status() int {
	switch j.kind {
	case poison502:
		return http.StatusBadGateway
	case poisonReset:
		return 0
	}
	return http.StatusOK
}

type jobKey struct{}

func jobOf(ctx context.Context) job { j, _ := ctx.Value(jobKey{}).(job); return j }

// exponential returns a time that is exponentially distributed.
func exponential(rng *rand.Rand, mean time.Duration) time.Duration {
	return time.Duration(rng.ExpFloat64() * float64(mean))
}
