// SPDX-License-Identifier: Apache-2.0

package test

import (
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

// limitedRun is a number of requests by some clients, of which each sends its next one after an
// answer.
type limitedRun struct {
	clients, requests int
	longest           time.Duration // of the run; what was not sent until then is left out
	ask               func() testkit.Answer
	halfway           func() // is called once, while the clients go on; may be nil
}

// result is what came of a run.
type runResult struct {
	statuses map[int]int
	slowest  time.Duration
	sent     int
}

// run sends the requests.
func (l limitedRun) run() (r runResult) {
	r.statuses = make(map[int]int)
	began := time.Now()
	var sent atomic.Int64
	var mu sync.Mutex
	var asking, changing sync.WaitGroup
	for range l.clients {
		asking.Go(func() {
			for {
				n := sent.Add(1)
				if n > int64(l.requests) || time.Since(began) > l.longest {
					return
				}
				if n == int64(l.clients) && l.halfway != nil {
					changing.Go(l.halfway)
				}
				from := time.Now()
				a := l.ask()
				mu.Lock()
				r.statuses[a.Status]++
				r.sent++
				r.slowest = max(r.slowest, time.Since(from))
				mu.Unlock()
			}
		})
	}
	asking.Wait()
	changing.Wait()
	return r
}

// longestRun is how long the requests of a test may take. A slow machine sends fewer.
const longestRun = 10 * time.Second

// 64 clients, and 4 requests at once for each of three upstreams: there are never 5. With a
// queue none gets 503, and none waits longer than the others; without one those get it for
// which there is no place. A reload can cut off a request that has just come: its place is
// free before its upstream notices.
func TestMaxRequests_IsExactUnderLoad(t *testing.T) {
	for _, queue := range []string{"queue 10s", ""} {
		t.Run(fmt.Sprintf("%q", queue), func(t *testing.T) {
			backends := startCounting(t, func() { time.Sleep(200 * time.Microsecond) }, "a", "b", "c")
			site := func(version int) string {
				return fmt.Sprintf("http:// {\nheader Version %d\n%s\n}", version, limitedProxy("shop", addressesOf(backends), "max_requests 4\n"+queue))
			}
			c := testkit.StartCaddy(t, site(0))
			awaitServing(t, c, addressesOf(backends))
			client := c.Client()
			for _, reloads := range []int{0, 2} {
				r := limitedRun{
					clients: 64, requests: 3000, longest: longestRun, ask: testkit.AskThrough(reloads, client, c.URL()),
					halfway: func() {
						for version := range reloads {
							if err := c.TryLoad(site(version + 1)); err != nil {
								t.Error(err)
							}
						}
					},
				}.run()
				t.Logf("%d reloads, %d requests, statuses %v, the slowest took %v", reloads, r.sent, r.statuses, r.slowest)
				for _, b := range backends {
					if most := b.most.Swap(0); most > int64(4+reloads) || most < 4 && queue != "" {
						t.Errorf("%s had %d requests at once with %d reloads, want 4", b.Name, most, reloads)
					}
					if b.all.Swap(0) == 0 {
						t.Errorf("%s had no requests", b.Name)
					}
				}
				full := 0
				if queue == "" {
					full = r.statuses[http.StatusServiceUnavailable]
					if full == 0 {
						t.Error("none was refused, so nothing was full")
					}
				}
				if r.statuses[http.StatusOK]+full != r.sent {
					t.Errorf("statuses %v of %d requests", r.statuses, r.sent)
				}
				if r.slowest > 8*time.Second {
					t.Errorf("a request took %v: it was not woken", r.slowest)
				}
			}
			if waits := c.Metrics()[`queue_seconds_count{pool="shop"}`]; (waits > 0) != (queue != "") {
				t.Errorf("%v requests have waited", waits)
			}
			wantIdle(t, c, "shop")
		})
	}
}

// The limit holds over every version of HTTP, from the client and to the upstream.
func TestMaxRequests_IsExactOverEveryHTTPVersion(t *testing.T) {
	var apps []*counting
	var addresses []string
	for range 2 {
		app := new(counting)
		apps = append(apps, app)
		addresses = append(addresses, testkit.StartRecorder(t, "tcp", "", nil, func(w http.ResponseWriter, r *http.Request) {
			if !strings.HasPrefix(r.URL.Path, "/healthz") {
				app.enter()
				time.Sleep(200 * time.Microsecond)
				app.now.Add(-1)
			}
			fmt.Fprint(w, r.Proto)
		}).Addr)
	}
	text := "https://localhost {\ntls internal\nrespond /ready 204\n"
	for _, scheme := range []string{"http", "h2c"} {
		text += fmt.Sprintf("handle /%s {\n%s\n}\n", scheme, limitedProxy(scheme, scheme+"://"+strings.Join(addresses, " "+scheme+"://"), "max_requests 2\nqueue 10s"))
	}
	c := testkit.StartCaddy(t, text+"}")
	awaitServing(t, c, strings.Join(addresses, " "))
	for _, version := range clientVersions() {
		client := c.ClientOf(version)
		testkit.Eventually(t, testkit.Patience, "the site has its certificate", func() bool { return testkit.Ask(client, c.SecureURL()+"/ready").Err == nil })
		if got := testkit.Ask(client, c.SecureURL()+"/ready").Proto; got != version {
			t.Fatalf("major version of HTTP: got %d, want %d", got, version)
		}
		for scheme, want := range map[string]string{"http": "HTTP/1.1", "h2c": "HTTP/2.0"} {
			t.Run(fmt.Sprintf("HTTP/%d to %s", version, scheme), func(t *testing.T) {
				for _, app := range apps {
					app.most.Store(0)
				}
				r := limitedRun{clients: 16, requests: 600, longest: longestRun, ask: func() testkit.Answer {
					a := testkit.Ask(client, c.SecureURL()+"/"+scheme)
					if a.Err == nil && a.Body != want {
						t.Errorf("the upstream got %q, want %s", a.Body, want)
					}
					return a
				}}.run()
				if r.statuses[http.StatusOK] != r.sent {
					t.Errorf("statuses %v of %d requests", r.statuses, r.sent)
				}
				for i, app := range apps {
					if app.most.Load() != 2 {
						t.Errorf("upstream %d had %d requests at once, want 2", i, app.most.Load())
					}
				}
				wantIdle(t, c.For(t), scheme)
			})
		}
	}
}

// clientVersions are the versions of HTTP that clients speak. The race detector finds that Caddy
// and the transport read the body of a request over HTTP/3 at once, with any policy.
func clientVersions() []int {
	if testkit.RaceDetector {
		return []int{1, 2}
	}
	return []int{1, 2, 3}
}

// Two handlers with limits of their own count the requests of one upstream together.
func TestMaxRequests_CountsForAllHandlers(t *testing.T) {
	app := startTurnstile(t)
	c := testkit.StartCaddy(t, fmt.Sprintf("http:// {\nhandle /one* {\n%s\n}\nhandle /two* {\n%s\n}\nhandle /free* {\n%s\n}\n}",
		limitedProxy("one", app.Addr, "max_requests 1"), limitedProxy("two", app.Addr, "max_requests 2"), limitedProxy("free", app.Addr, "")))
	awaitServing(t, c, app.Addr)
	client := c.Client()
	var sent []*begun
	for i, path := range []string{"/one", "/two", "/free"} {
		sent = append(sent, begin(t, client, c.URL()+path))
		app.awaitArrivals(t, i+1)
	}
	for _, path := range []string{"/one", "/two"} {
		if a := testkit.Ask(client, c.URL()+path); a.Status != http.StatusServiceUnavailable {
			t.Errorf("%s: %v, want 503", path, a)
		}
	}
	for range sent {
		app.letOut(t)
	}
	for _, s := range sent {
		if a := s.end(t); a.Status != http.StatusOK {
			t.Error(a)
		}
	}
	for _, pool := range []string{"one", "two", "free"} {
		wantIdle(t, c, pool)
	}
}

// forward_auth asks the upstream to which the request goes afterwards, and both have its limit
// of one request. The answer of the first does not keep the second waiting, whether or not it
// tells its length.
func TestMaxRequests_ForwardAuthAtTheSameAddress(t *testing.T) {
	for _, length := range []string{"known", "unknown"} {
		t.Run(length, func(t *testing.T) {
			app := startCounting(t, func() {}, "a")[0]
			app.Answer(func(w http.ResponseWriter, r *http.Request) bool {
				app.enter()
				defer app.now.Add(-1)
				if r.URL.Path == "/auth" && length == "unknown" {
					_ = http.NewResponseController(w).Flush()
				}
				_, _ = io.WriteString(w, r.URL.Path)
				return true
			})
			c := testkit.StartCaddy(t, fmt.Sprintf("http:// {\nforward_auth %s {\nuri /auth\nlb_policy alive {\nname auth\n%s\nmax_requests 1\nqueue %s\n}\n}\n%s\n}",
				app.Addr, testkit.QuickCheck, longestRun, limitedProxy("app", app.Addr, "max_requests 1\nqueue "+longestRun.String())))
			awaitServing(t, c, app.Addr)
			client := c.Client()
			began := time.Now()
			r := limitedRun{clients: 5, requests: 50, longest: longestRun, ask: func() testkit.Answer { return testkit.Ask(client, c.URL()+"/page") }}.run()
			if r.statuses[http.StatusOK] != r.sent || r.sent < 50 || time.Since(began) > longestRun {
				t.Errorf("length %s: statuses %v after %s", length, r.statuses, time.Since(began))
			}
			for _, pool := range []string{"auth", "app"} {
				wantIdle(t, c, pool)
			}
		})
	}
}
