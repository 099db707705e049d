// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/monitor"
	"github.com/caddy-alive/caddy-alive/probe"
)

// saying is a kind of check that answers what it is told to, and writes down when
// its probes began.
type saying struct {
	began  time.Time
	mu     sync.Mutex
	answer error
	at     map[string][]time.Duration // by upstream
}

// newSaying makes one from a verdict: u for up, d for down, r for up and draining.
func newSaying(verdict rune) *saying {
	s := &saying{began: time.Now(), at: make(map[string][]time.Duration)}
	s.says(verdict)
	return s
}

func (s *saying) says(verdict rune) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = map[rune]error{'d': errors.New("sick"), 'r': probe.ErrDraining}[verdict]
}

func (s *saying) Probe(_ context.Context, up probe.Upstream) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at[up.Address] = append(s.at[up.Address], time.Since(s.began))
	return s.answer
}

func (s *saying) probes(upstream string) []time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.at[upstream])
}

// checking is a check by it, with an identity of its own.
func (s *saying) checking() *HealthCheck {
	return checkBy(s, "saying", health.Settings{
		Interval: 10 * time.Second, FastInterval: time.Second, DownInterval: 5 * time.Second,
		Timeout: time.Second, Passes: 2, Fails: 3,
	})
}

// checkBy is a check by a prober, as after it is provisioned, with an identity of its own.
func checkBy(prober probe.Prober, label string, settings health.Settings) *HealthCheck {
	c := &HealthCheck{prober: prober, resolved: monitor.Check{Kind: label, Identity: fmt.Sprintf("%s %p", label, prober), Label: label, Settings: settings}}
	c.resolved.Validate, c.resolved.Bind = c.validate, c.bind
	return c
}

// defaultTransport is that of a handler which configures none.
var defaultTransport = func() *monitor.Transport {
	ctx, _ := caddy.NewContext(caddy.Context{Context: context.Background()})
	t, err := monitor.NewTransport(ctx, new(reverseproxy.Handler))
	if err != nil {
		panic(err)
	}
	return t
}()

// openWatch makes a monitor of an upstream, which the caller releases.
func openWatch(tb testing.TB, upstream string, check *HealthCheck) *monitor.Monitor {
	tb.Helper()
	u, err := monitor.ParseUpstream(upstream)
	if err != nil {
		tb.Fatal(err)
	}
	w, err := defaultTransport.Open(u, &check.resolved, monitor.Hooks{Logger: zap.NewNop(), Counters: openCounters})
	if err != nil {
		tb.Fatal(err)
	}
	return w
}

// watchOf makes a monitor of an upstream, whose target is one of the shared ones.
func watchOf(tb testing.TB, upstream string, check *HealthCheck) *monitor.Monitor {
	tb.Helper()
	w := openWatch(tb, upstream, check)
	tb.Cleanup(func() {
		w.Stop()
		if err := w.Release(); err != nil {
			tb.Error(err)
		}
	})
	return w
}

// watching is a policy that has these monitors, and no more of a policy than that.
func watching(watches ...*monitor.Monitor) *Selection { return &Selection{watches: watches} }

// Across a reload that changes the check of an upstream, requests go on as if it
// was the same: it takes as many probes of the new check as ever to change the
// verdict. What both configs check is not disturbed.
func TestAChangedCheckTakesOverOnReload(t *testing.T) {
	for _, tc := range []struct {
		rule          string
		before, after rune
		probes        []time.Duration // of the new check, since the reload
		changes       time.Duration   // since the reload, 0 for never
		status        health.Status
	}{
		{"up, and fails now", 'u', 'd', []time.Duration{0, 1, 2, 7, 12, 17}, 2, health.Up},
		{"up, and passes", 'u', 'u', []time.Duration{0, 10}, 0, health.Up},
		{"down, and passes now", 'd', 'u', []time.Duration{0, 1, 11}, 1, health.Down},
		{"down, and fails", 'd', 'd', []time.Duration{0, 5, 10, 15}, 0, health.Down},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				const changed, same = "10.9.0.1:80", "10.9.0.2:80"
				kept := newSaying('u')
				load := func(changing *saying) (*App, *policy) {
					p := newPolicy(t, "")
					var watches []*monitor.Monitor
					for upstream, s := range map[string]*saying{changed: changing, same: kept} {
						w := watchOf(t, upstream, s.checking())
						w.Subscribe(p.refresh)
						watches = append(watches, w)
					}
					p.watches = watches
					p.run(false)
					app := newTestApp(t)
					app.adopt(p.Selection)
					return app, p
				}
				of := func(p *policy, upstream string) *monitor.Monitor {
					return p.watches[slices.IndexFunc(p.watches, func(w *monitor.Monitor) bool { return w.Upstream.Dial == upstream })]
				}
				start := func(app *App) {
					if err := app.Start(); err != nil {
						t.Fatal(err)
					}
				}
				older, _ := load(newSaying(tc.before))
				start(older)
				time.Sleep(25 * time.Second)
				synctest.Wait()

				began := time.Now()
				s := newSaying(tc.after)
				newer, p := load(s)
				if got := of(p, changed).Target.Status(); got != tc.status {
					t.Errorf("before the start: status %v, want %v", got, tc.status)
				}
				start(newer)
				if err := older.Cleanup(); err != nil {
					t.Fatal(err)
				}
				if got := of(p, changed).Target.Status(); got != tc.status {
					t.Errorf("right after the reload: status %v, want %v", got, tc.status)
				}
				if tc.changes > 0 {
					time.Sleep(tc.changes*time.Second - time.Millisecond)
					synctest.Wait()
					if got := of(p, changed).Target.Status(); got != tc.status {
						t.Errorf("just before the last probe that it takes: status %v, want %v", got, tc.status)
					}
				}
				time.Sleep(19*time.Second - time.Since(began))
				synctest.Wait()
				if got := of(p, changed).Target.Status() != tc.status; got != (tc.changes > 0) {
					t.Errorf("at last: changed %v, want %v", got, tc.changes > 0)
				}
				if at := of(p, changed).Target.Since().Sub(began); tc.changes > 0 && at != tc.changes*time.Second {
					t.Errorf("changed after %v, want %v", at, tc.changes*time.Second)
				}
				var want []time.Duration
				for _, at := range tc.probes {
					want = append(want, at*time.Second)
				}
				if got := s.probes(changed); !slices.Equal(got, want) {
					t.Errorf("the new check: probes began at %v, want %v", got, want)
				}
				want = nil
				for at := time.Duration(0); at < 44*time.Second; at += 10 * time.Second {
					want = append(want, at)
				}
				got := kept.probes(same)
				for i := range got {
					got[i] = got[i].Truncate(100 * time.Millisecond) // the first probes are a millisecond apart
				}
				if !slices.Equal(got, want) {
					t.Errorf("what both configs check: probes began at %v, want %v", got, want)
				}
				if err := newer.Cleanup(); err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}
