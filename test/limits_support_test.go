// SPDX-License-Identifier: Apache-2.0

package test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// counting is a backend that counts the requests that it has at once: from their arrival to
// just before the last byte of the answer.
type counting struct {
	*testkit.Backend
	now, most, all atomic.Int64
}

// startCounting runs backends that answer after some work.
func startCounting(t *testing.T, work func(), names ...string) (all []*counting) {
	t.Helper()
	for _, b := range testkit.StartBackends(t, names...) {
		c := &counting{Backend: b}
		b.Answer(func(w http.ResponseWriter, _ *http.Request) bool {
			c.enter()
			work()
			c.now.Add(-1)
			_, _ = io.WriteString(w, c.Name)
			return true
		})
		all = append(all, c)
	}
	return all
}

// enter counts a request that has arrived.
func (c *counting) enter() {
	c.all.Add(1)
	now := c.now.Add(1)
	for {
		most := c.most.Load()
		if now <= most || c.most.CompareAndSwap(most, now) {
			return
		}
	}
}

// addressesOf are those of the backends, as reverse_proxy takes them.
func addressesOf(all []*counting) string {
	var list []string
	for _, c := range all {
		list = append(list, c.Addr)
	}
	return strings.Join(list, " ")
}

// limitedSite is a plain site over upstreams, with options of the policy and of the handler. The
// pool is "shop", and what traffic says of upstreams is ignored.
func limitedSite(upstreams, options string, more ...string) string {
	return "http:// {\n" + limitedProxy("shop", upstreams, options, more...) + "\n}"
}

// limitedProxy is the handler of such a site.
func limitedProxy(name, upstreams, options string, more ...string) string {
	return fmt.Sprintf("reverse_proxy %s {\nlb_policy alive {\nname %s\n%s\nretries off\nobserve off\n%s\n}\n%s\n}", upstreams, name, testkit.QuickCheck, options, strings.Join(more, "\n"))
}

// awaitServing returns when all upstreams are up.
func awaitServing(t *testing.T, c *testkit.Caddy, upstreams string) {
	t.Helper()
	testkit.Eventually(t, testkit.Patience, "all are up", func() bool { return c.Up(strings.Fields(upstreams)...) })
}

// waiting returns how many requests wait in the queue of a pool, -1 while a reload replaces the
// admin endpoint.
func waiting(c *testkit.Caddy, pool string) int {
	metrics, err := c.TryMetrics()
	if err != nil {
		return -1
	}
	return int(metrics[fmt.Sprintf("queue_length{pool=%q}", pool)])
}

// awaitWaiting returns when so many requests wait.
func awaitWaiting(t *testing.T, c *testkit.Caddy, pool string, n int) {
	t.Helper()
	testkit.Eventually(t, testkit.Patience, fmt.Sprintf("%d requests wait", n), func() bool { return waiting(c, pool) == n })
}

// wantIdle fails the test unless no request is in flight or waits. That all slots are free is
// seen when Caddy stops: else something would be left behind.
func wantIdle(t *testing.T, c *testkit.Caddy, pool string) {
	t.Helper()
	testkit.Eventually(t, testkit.Patience, "nothing is in flight", func() bool {
		rows, err := c.TryList(map[string][]string{"pool": {pool}})
		for _, row := range rows {
			if row.Requests != 0 {
				return false
			}
		}
		return err == nil && len(rows) > 0 && waiting(c, pool) == 0
	})
}

// begun is a request that runs beside the test.
type begun struct {
	answer chan testkit.Answer
	leave  context.CancelFunc
}

// begin sends a request.
func begin(t *testing.T, client *http.Client, url string) *begun {
	t.Helper()
	ctx, leave := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	b := &begun{answer: make(chan testkit.Answer, 1), leave: leave}
	go func() { b.answer <- testkit.Do(client, req) }()
	t.Cleanup(leave)
	return b
}

// end returns the answer.
func (b *begun) end(t *testing.T) testkit.Answer {
	t.Helper()
	return testkit.Wait(t, b.answer, testkit.Patience)
}

// turnstile is a backend that lets requests out one by one, as a test says.
type turnstile struct {
	*testkit.Backend
	mu   sync.Mutex
	in   []string // the paths of the requests, as they came
	outs chan struct{}
}

// startTurnstile runs one.
func startTurnstile(t *testing.T) *turnstile {
	t.Helper()
	s := &turnstile{Backend: testkit.StartBackend(t, "a", nil), outs: make(chan struct{})}
	s.Answer(func(w http.ResponseWriter, r *http.Request) bool {
		s.mu.Lock()
		s.in = append(s.in, r.URL.Path)
		s.mu.Unlock()
		select {
		case <-s.outs:
		case <-r.Context().Done():
		}
		_, _ = io.WriteString(w, "a")
		return true
	})
	return s
}

// arrived returns the paths of the requests that have come.
func (s *turnstile) arrived() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.in...)
}

// awaitArrivals returns when so many requests have come in all.
func (s *turnstile) awaitArrivals(t *testing.T, n int) {
	t.Helper()
	testkit.Eventually(t, testkit.Patience, fmt.Sprintf("%d requests have arrived", n), func() bool { return len(s.arrived()) == n })
}

// letOut lets a request out.
func (s *turnstile) letOut(t *testing.T) {
	t.Helper()
	select {
	case s.outs <- struct{}{}:
	case <-time.After(testkit.Patience):
		t.Fatal("no request is in")
	}
}
