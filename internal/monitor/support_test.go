// SPDX-License-Identifier: Apache-2.0

package monitor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/health"
)

// prober returns a fixed verdict and records when its probes began.
type prober struct {
	began   time.Time
	mu      sync.Mutex
	verdict rune
	at      map[string][]time.Duration // by upstream
}

// newProber makes one from a verdict: u for up, d for down, r for up and draining.
func newProber(verdict rune) *prober {
	return &prober{began: time.Now(), verdict: verdict, at: make(map[string][]time.Duration)}
}

// probes returns when the probes of an upstream began.
func (p *prober) probes(upstream string) []time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.at[upstream])
}

func (p *prober) bind(r *Route) ProbeFunc {
	return func(context.Context) (draining bool, err error) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.at[r.Address] = append(p.at[r.Address], time.Since(p.began))
		if p.verdict == 'd' {
			return false, errors.New("sick")
		}
		return p.verdict == 'r', nil
	}
}

// check returns a check by the prober, with an identity of its own.
func (p *prober) check() *Check {
	return &Check{Identity: fmt.Sprintf("%p", p), Label: "test", Bind: p.bind, Settings: health.Settings{
		Interval: 10 * time.Second, FastInterval: time.Second, DownInterval: 5 * time.Second,
		Timeout: time.Second, Passes: 2, Fails: 3,
	}}
}

// counts counts what comes of the probes of one monitor.
type counts struct {
	mu                   sync.Mutex
	probed, inconclusive int
	changed              []health.Transition
}

func (c *counts) Probed(health.Result) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.probed++
}

func (c *counts) Inconclusive() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.inconclusive++
}

func (c *counts) Changed(change health.Transition) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.changed = append(c.changed, change)
}

func (*counts) Close() error { return nil }

// noHooks connect a monitor to nothing.
func noHooks() Hooks {
	return Hooks{Logger: zap.NewNop(), Counters: func(string, *Check) (Counters, error) { return new(counts), nil }}
}

// newContext returns the context of a config, until the test ends.
func newContext(tb testing.TB) caddy.Context {
	tb.Helper()
	ctx, cancel := caddy.NewContext(caddy.Context{Context: context.Background()})
	tb.Cleanup(cancel)
	return ctx
}

// newTransport returns that of a handler with a transport, nil if it configures none.
func newTransport(tb testing.TB, ctx caddy.Context, over http.RoundTripper) *Transport {
	tb.Helper()
	t, err := NewTransport(ctx, &reverseproxy.Handler{Transport: over})
	if err != nil {
		tb.Fatal(err)
	}
	return t
}

// defaultTransport is that of a handler which configures none. It can be used in several
// bubbles of virtual time.
var defaultTransport = func() *Transport {
	ctx, _ := caddy.NewContext(caddy.Context{Context: context.Background()})
	t, err := NewTransport(ctx, new(reverseproxy.Handler))
	if err != nil {
		panic(err)
	}
	return t
}()

// routeTo returns the route of a check to the upstream at a dial address.
func routeTo(t *Transport, dial string, check *Check) (*Route, error) {
	upstream, err := ParseUpstream(dial)
	if err != nil {
		return nil, err
	}
	return t.Route(upstream, check)
}

// open returns a monitor of the upstream at a dial address. It is stopped and released
// when the test ends.
func open(tb testing.TB, dial string, check *Check) *Monitor {
	tb.Helper()
	return openWith(tb, dial, check, noHooks())
}

func openWith(tb testing.TB, dial string, check *Check, hooks Hooks) *Monitor {
	tb.Helper()
	upstream, err := ParseUpstream(dial)
	if err != nil {
		tb.Fatal(err)
	}
	m, err := defaultTransport.Open(upstream, check, hooks)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		m.Stop()
		if err := m.Release(); err != nil {
			tb.Error(err)
		}
	})
	return m
}

// running returns a monitor that has the verdict u, d or r, or is started and has none yet
// for ?.
func running(tb testing.TB, dial string, verdict rune) *Monitor {
	tb.Helper()
	m := open(tb, dial, newProber(verdict).check())
	delay := time.Duration(0)
	if verdict == '?' {
		delay = time.Hour
	}
	m.Start(delay)
	synctest.Wait()
	return m
}

// probeHeader is the header of all requests of [get]: as with probes, they share it.
var probeHeader = http.Header{"User-Agent": {"caddy-alive"}}

// get sends a request over a route as a probe does, and reads the answer.
func get(ctx context.Context, r *Route, path string, followRedirects bool) error {
	req := (&http.Request{
		Method: http.MethodGet, URL: &url.URL{Scheme: r.Scheme, Host: r.Host, Path: path}, Host: r.Host,
		Header: probeHeader, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}).WithContext(ctx)
	send := r.RoundTripper.RoundTrip
	if followRedirects {
		send = (&http.Client{Transport: r.RoundTripper}).Do
	}
	resp, err := send(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}
