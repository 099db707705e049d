// SPDX-License-Identifier: Apache-2.0

package source

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

var (
	errDown    = errors.New("the source is down")
	errMissing = &net.DNSError{Err: "no such host", Name: "app", IsNotFound: true}
)

// inner is a source that a test decides on.
type inner struct {
	mu     sync.Mutex
	dials  []string
	err    error
	takes  time.Duration // it ends earlier with its context
	calls  int
	resets int
	panics bool
	deaf   bool // it does not heed its context
}

// set changes what it answers, and after which time.
func (i *inner) set(takes time.Duration, err error, dials ...string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.takes, i.err, i.dials = takes, err, dials
}

// asked returns how often it was asked, and asked to reset its cache.
func (i *inner) asked() (calls, resets int) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.calls, i.resets
}

// GetUpstreams answers as set.
func (i *inner) GetUpstreams(r *http.Request) ([]*reverseproxy.Upstream, error) {
	_ = r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer) // as Caddy's own sources need it
	i.mu.Lock()
	i.calls++
	takes, err, dials, deaf := i.takes, i.err, i.dials, i.deaf
	if i.panics {
		i.mu.Unlock()
		panic("a bug")
	}
	i.mu.Unlock()
	ended := r.Context().Done()
	if deaf {
		ended = nil
	}
	select {
	case <-time.After(takes):
	case <-ended:
		return nil, r.Context().Err()
	}
	if err != nil {
		return nil, err
	}
	upstreams := make([]*reverseproxy.Upstream, 0, len(dials))
	for _, dial := range dials {
		upstreams = append(upstreams, &reverseproxy.Upstream{Dial: dial, MaxRequests: 7})
	}
	return upstreams, nil
}

// cached is a source that has a cache to reset.
type cached struct{ *inner }

// ResetCache counts.
func (c cached) ResetCache(*http.Request) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.resets++
	return nil
}

// refreshed is how long answers are fresh in these tests.
const refreshed = 10 * time.Second

// fixture is a source around one of a test, and what it logs.
type fixture struct {
	*Source
	t    *testing.T
	logs *observer.ObservedLogs
}

// inBackground and onRequest are the two ways in which a source is asked.
var inBackground, onRequest = true, false

// open returns a source around another one, with the key "source".
func open(t *testing.T, around reverseproxy.UpstreamSource, background bool, stale time.Duration) fixture {
	t.Helper()
	core, logs := observer.New(zapcore.InfoLevel)
	s, err := newSource(t.Context(), around, "source", stale, zap.New(core))
	if err != nil {
		t.Fatal(err)
	}
	if s.background = background; background {
		s.refresh = refreshed
	}
	return fixture{s, t, logs}
}

// close takes back open.
func (f fixture) close() {
	f.t.Helper()
	if err := f.Close(); err != nil {
		f.t.Error(err)
	}
}

// request returns a request as a handler has it.
func request(ctx context.Context) *http.Request {
	ctx = context.WithValue(ctx, caddy.ReplacerCtxKey, caddy.NewReplacer())
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "/", nil)
	if err != nil {
		panic(err)
	}
	return r
}

// get returns what one request gets: addresses, or an error; and how long it waits.
func (f fixture) get() (got string, waited time.Duration) {
	begin := time.Now()
	upstreams, err := f.GetUpstreams(request(context.Background()))
	if waited = time.Since(begin); err != nil {
		return err.Error(), waited
	}
	dials := make([]string, 0, len(upstreams))
	for _, u := range upstreams {
		if u.Host != nil || u.MaxRequests != 7 {
			f.t.Errorf("%s: host %v and limit %d, want those of a new upstream of the source", u.Dial, u.Host, u.MaxRequests)
		}
		dials = append(dials, u.Dial)
	}
	return strings.Join(dials, " "), waited
}

// wants checks what a request gets, and that it waits no longer than given.
func (f fixture) wants(what, want string, longest time.Duration) {
	f.t.Helper()
	if got, waited := f.get(); got != want || waited > longest {
		f.t.Errorf("%s: got %q after %s, want %q within %s", what, got, waited, want, longest)
	}
}

// lines returns what was logged since the last call, as level, message and some fields.
func (f fixture) lines() (lines []string) {
	synctest.Wait()
	for _, entry := range f.logs.TakeAll() {
		line := fmt.Sprintf("%s: %s", entry.Level, entry.Message)
		fields := entry.ContextMap()
		for _, key := range []string{"age", "failed_for", "error"} {
			if value, given := fields[key]; given {
				line += fmt.Sprintf(" %s=%v", key, value)
			}
		}
		lines = append(lines, line)
	}
	return lines
}

// logged checks what was logged since the last call.
func (f fixture) logged(want ...string) {
	f.t.Helper()
	if got := f.lines(); strings.Join(got, "\n") != strings.Join(want, "\n") {
		f.t.Errorf("logged\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}
