// SPDX-License-Identifier: Apache-2.0

package test

import (
	"cmp"
	"context"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// nuisance is something that fails or takes long, and says nothing about one upstream.
type nuisance struct {
	route
	every time.Duration                               // how often it happens
	good  time.Duration                               // how often there is a good request, 20 ms if it is 0
	send  func(c *testkit.Caddy, client *http.Client) // what happens
	// accuses: what happens may accuse, so bursts within the back-off are to be expected.
	accuses bool
}

// poison is a path of requests that every upstream resets, and status504 one of those that
// every upstream answers with 504.
const (
	poison    = "/poison"
	status504 = "/504"
	slowly    = "/slow"
)

// nuisances are those that happen to all upstreams alike.
func nuisances() []nuisance {
	ends := func(path string, every, good time.Duration) nuisance {
		name := strings.Trim(path, "/") + "-" + every.String() + "-" + good.String()
		return nuisance{
			route: route{path: name}, every: every, good: good, accuses: true,
			send: func(c *testkit.Caddy, client *http.Client) { send(client, http.MethodPost, c.URL()+"/"+name+path, "") },
		}
	}
	slow := func(name string, every time.Duration, options string, more string) nuisance {
		return nuisance{
			route: route{path: name, policy: options, handler: more}, every: every,
			send: func(c *testkit.Caddy, client *http.Client) { testkit.Ask(client, c.URL()+"/"+name+slowly) },
		}
	}
	timeout := slow("timeout", 50*time.Millisecond, "", "transport http {\nresponse_header_timeout 700ms\n}")
	timeout.accuses = testkit.RaceDetector // then this process itself may answer nothing for so long
	return []nuisance{
		slow("endpoint", 100*time.Millisecond, "", ""),
		slow("longpolls", 20*time.Millisecond, "", ""), // as many as there are others
		timeout,
		{
			route: route{path: "leaves"}, every: 20 * time.Millisecond,
			send: func(c *testkit.Caddy, client *http.Client) {
				ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
				defer cancel()
				req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.URL()+"/leaves"+slowly, nil)
				if err == nil {
					testkit.Do(client, req)
				}
			},
		},
		upload("breaks", "POST /breaks HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\nthe beginning"),
		upload("chunks", "POST /chunks HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nstart\r\nno length\r\n"),
		{
			route: route{path: "maxsize", before: "request_body {\nmax_size 10\n}"}, every: 20 * time.Millisecond,
			send: func(c *testkit.Caddy, client *http.Client) {
				req, err := http.NewRequest(http.MethodPost, c.URL()+"/maxsize", io.MultiReader(strings.NewReader("more than ten bytes"))) // of unknown length
				if err == nil {
					testkit.Do(client, req)
				}
			},
		},
		ends(poison, time.Second, 100*time.Millisecond), ends(poison, time.Second, 10*time.Millisecond),
		ends(poison, 100*time.Millisecond, 10*time.Millisecond),
		ends(poison, 10*time.Millisecond, 10*time.Millisecond), ends(poison, 10*time.Millisecond, 100*time.Millisecond),
		ends(status504, time.Second, 10*time.Millisecond), ends(status504, 100*time.Millisecond, 100*time.Millisecond),
		ends(status504, 10*time.Millisecond, 10*time.Millisecond),
	}
}

// upload is what a client sends before it leaves.
func upload(name, text string) nuisance {
	return nuisance{
		route: route{path: name}, every: 20 * time.Millisecond,
		send: func(c *testkit.Caddy, _ *http.Client) {
			conn, err := net.Dial("tcp", strings.TrimPrefix(c.URL(), "http://"))
			if err != nil {
				return
			}
			defer conn.Close()
			_, _ = io.WriteString(conn, text)
			_ = conn.SetReadDeadline(time.Now().Add(20 * time.Millisecond)) // time to get to the upstream
			_, _ = io.Copy(io.Discard, conn)
		},
	}
}

// endsBadly answers requests for the paths of nuisances.
func endsBadly(leave <-chan struct{}) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		switch {
		case strings.HasSuffix(r.URL.Path, poison):
			panic(http.ErrAbortHandler)
		case strings.HasSuffix(r.URL.Path, status504):
			w.WriteHeader(http.StatusGatewayTimeout)
			return true
		case strings.HasSuffix(r.URL.Path, slowly):
			select {
			case <-time.After(1500 * time.Millisecond):
			case <-r.Context().Done():
			case <-leave:
			}
		default:
			_, _ = io.Copy(io.Discard, r.Body)
		}
		return false
	}
}

// What happens to requests and is not the doing of one upstream takes no upstream out, moves
// no traffic and ejects none, and makes suspects only as often as the back-off allows. After
// it, a failure of an upstream is still noticed by the first request.
func TestFalseWitness(t *testing.T) {
	all := nuisances()
	var routes []route
	for i := range all {
		all[i].upstreams = three(t)
		for _, b := range all[i].upstreams {
			b.Answer(endsBadly(t.Context().Done()))
		}
		all[i].policy += "\n" + burstCheck + "\nretries off"
		routes = append(routes, all[i].route)
	}
	c := startRoutes(t, "", routes...)
	for some := range slices.Chunk(all, (len(all)+1)/2) { // a slow machine is not to be the cause of what happens
		together(t, some, func(n nuisance) string { return n.path }, func(t *testing.T, n nuisance) { n.happens(t, c.For(t)) })
	}
}

// happens runs good requests beside the nuisance, and checks what came of it.
func (n *nuisance) happens(t *testing.T, c *testkit.Caddy) {
	const lasts = 2500 * time.Millisecond
	client := c.Client()
	began := time.Now()
	good := testkit.OpenLoop(t, cmp.Or(n.good, 20*time.Millisecond), asks(c, http.MethodGet, n.path, ""))
	var times atomic.Int64
	bad := testkit.OpenLoop(t, n.every, func() testkit.Answer {
		// a fixed distance would have the same upstreams get them each time
		time.Sleep(rand.N(min(n.every, 50*time.Millisecond)))
		n.send(c, client)
		times.Add(1)
		return testkit.Answer{Status: http.StatusOK}
	})
	testkit.Eventually(t, testkit.Patience, "it has happened often", func() bool {
		return time.Since(began) >= lasts && times.Load() > 0
	})
	if failed := failures(good.Sent()); len(failed) > 0 {
		t.Errorf("%d good requests failed: %v", len(failed), failed)
	}
	most := 0
	if n.accuses && n.every <= n.good {
		most = 1 // five in a row, by chance, before others had two in a row
	}
	metrics := c.Metrics()
	if wantUndisturbed(t, metrics, n.route, most) == 0 {
		n.wantShares(t)
	}
	n.wantBursts(t, metrics, time.Since(began))

	victim := n.upstreams[1]
	victim.Set(testkit.Refusing)
	good.Await(t, 30)
	wantRounds(t, "after a kill", good.Stop(), 3)
	bad.Stop()
	testkit.Eventually(t, testkit.Patience, "it is down", func() bool { return c.Down(victim.Addr) })
}

// wantShares fails the test unless all upstreams got as many requests as each other, within
// two percent of all; more with the race detector, which makes bursts last longer.
func (n *nuisance) wantShares(t *testing.T) {
	t.Helper()
	var seen []int
	sum := 0
	for _, b := range n.upstreams {
		requests, _ := b.Seen()
		seen = append(seen, requests)
		sum += requests
	}
	even, share := float64(sum)/float64(len(seen)), 0.02
	if testkit.RaceDetector {
		share *= 3
	}
	for _, requests := range seen {
		// those that are under way to an upstream do not count yet
		if off := float64(requests) - even; max(off, -off) > share*float64(sum)+5 {
			t.Errorf("requests by upstream: %v, want even shares", seen)
			return
		}
	}
}

// wantBursts fails the test if there were more probes than the back-off allows.
func (n *nuisance) wantBursts(t *testing.T, metrics map[string]float64, during time.Duration) {
	t.Helper()
	for _, b := range n.upstreams {
		bursts := b.Probed("/healthz") - 1
		accused := 0.0
		for _, cause := range []string{"connect", "outcome", "stall"} {
			accused += metrics[series("accusations_total", "cause", cause, "pool", n.path, "upstream", b.Addr)]
		}
		t.Logf("%s: %v accusations, %d bursts in %s", b.Name, accused, bursts, during.Round(time.Millisecond))
		if most := 6 + int(accused)/2; n.every < n.good {
			// three in a row and more are as if it were the upstream
		} else if n.accuses && bursts > most {
			t.Errorf("%s was probed %d times, want at most %d", b.Name, bursts, most)
		}
		if !n.accuses && accused > 0 {
			t.Errorf("%s was accused %v times, want never", b.Name, accused)
		}
		if !n.accuses && bursts > 0 {
			t.Errorf("%s was probed %d times because of it, want never", b.Name, bursts)
		}
	}
}
