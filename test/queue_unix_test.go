// SPDX-License-Identifier: Apache-2.0

//go:build unix

package test

import (
	"net/http"
	"syscall"
	"testing"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// processorTime returns how much of it this process has used.
func processorTime(t *testing.T) time.Duration {
	t.Helper()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		t.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// A thousand requests that wait for a slot use hardly any processor time, also while they look for
// what Caddy's own health checks change.
func TestQueue_WaitingCostsNothing(t *testing.T) {
	sites := map[string][]string{"signals": nil}
	if !testkit.RaceDetector { // with which a look takes several times as long
		sites["Caddy's own health checks"] = []string{"fail_duration 30s"}
	}
	for name, options := range sites {
		t.Run(name, func(t *testing.T) {
			app := startTurnstile(t)
			c := testkit.StartCaddy(t, limitedSite(app.Addr, "max_requests 1\nqueue 1m 1000", options...))
			awaitServing(t, c, app.Addr)
			client := c.Client()
			const many = 1000
			sent := []*begun{begin(t, client, c.URL())}
			app.awaitArrivals(t, 1)
			for range many {
				sent = append(sent, begin(t, client, c.URL()))
			}
			awaitWaiting(t, c, "shop", many)
			const during, most = time.Second, 80 * time.Millisecond // of which the checks are a part
			var used time.Duration
			if !testkit.Poll(testkit.Patience, func() bool { // the collector may have work left from before
				before := processorTime(t)
				time.Sleep(during)
				used = processorTime(t) - before
				return used < most
			}) {
				t.Errorf("%d requests that wait use %v of processor time in %v, want %v at most", many, used, during, most)
			}
			t.Logf("%d requests that wait use %v of processor time in %v", many, used, during)
			for range sent {
				app.letOut(t)
			}
			for _, s := range sent {
				if a := s.end(t); a.Status != http.StatusOK {
					t.Error(a)
				}
			}
			wantIdle(t, c, "shop")
		})
	}
}
