// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// abortsAt makes backends close the connection without an answer to requests for a path.
func abortsAt(path string, backends ...*testkit.Backend) {
	for _, b := range backends {
		b.Answer(func(_ http.ResponseWriter, r *http.Request) bool {
			if strings.HasSuffix(r.URL.Path, path) {
				panic(http.ErrAbortHandler)
			}
			return false
		})
	}
}

// triedBy returns how many requests each of the backends gets for one that is sent.
func triedBy(backends []*testkit.Backend, ask func()) (counts []int) {
	var before []int
	for _, b := range backends {
		requests, _ := b.Seen()
		before = append(before, requests)
	}
	ask()
	for i, b := range backends {
		requests, _ := b.Seen()
		counts = append(counts, requests-before[i])
	}
	return counts
}

// How often a request is tried: as the handler says, else as the policy says, else twice
// more. No upstream gets it twice while another one serves.
func TestRetries_HowOften(t *testing.T) {
	const ignored = "the option retries of lb_policy alive has no effect"
	cases := []struct {
		route
		method  string
		tries   int
		ignored bool
	}{
		{route{path: "default"}, http.MethodGet, 3, false},
		{route{path: "post"}, http.MethodPost, 1, false}, // Caddy does not repeat what may have had an effect
		{route{path: "off", policy: "retries off"}, http.MethodGet, 1, false},
		{route{path: "one", policy: "retries 1"}, http.MethodGet, 2, false},
		{route{path: "four", policy: "retries 4"}, http.MethodGet, 5, false},
		{route{path: "handler", handler: "lb_retries 3"}, http.MethodGet, 4, false},
		{route{path: "both", policy: "retries 1", handler: "lb_retries 3"}, http.MethodGet, 4, true},
	}
	var routes []route
	for i := range cases {
		one := &cases[i]
		one.upstreams = testkit.StartBackends(t, "a", "b", "c", "d", "e")
		one.policy += "\n" + burstCheck + "\nobserve off"
		if i%2 == 0 { // what is tried is known with and without
			one.policy = strings.Replace(one.policy, "observe off", "eject off", 1)
		}
		abortsAt("/poison", one.upstreams...)
		routes = append(routes, one.route)
	}
	c := startRoutes(t, "", routes...)
	client := c.Client()
	want := 0
	for _, one := range cases {
		if one.ignored {
			want++
		}
		for range 10 {
			sum := 0
			tried := triedBy(one.upstreams, func() { send(client, one.method, c.URL()+"/"+one.path+"/poison", "") })
			for i, n := range tried {
				sum += n
				if n > 1 {
					t.Errorf("%s: %s was tried %d times", one.path, one.upstreams[i].Name, n)
				}
			}
			if sum != one.tries {
				t.Errorf("%s: tried %v, want %d tries", one.path, tried, one.tries)
			}
		}
	}
	if n := len(c.Lines(ignored)); n != want {
		t.Errorf("%d warnings that an option has no effect, want %d", n, want)
	}
	for _, line := range c.Lines(ignored) {
		if line.Level != "warn" {
			t.Errorf("the warning has the level %s", line.Level)
		}
	}
}

// When a request has tried all upstreams that serve, it tries those that are down, each once,
// unless fail_open is off.
func TestRetries_DownOnesAtLast(t *testing.T) {
	var routes []route
	for _, failOpen := range []string{"none_up", "off"} {
		r := route{path: failOpen, upstreams: testkit.StartBackends(t, "a", "b", "c", "d"), policy: "fail_open " + failOpen + "\nretries 3\n" + testkit.QuickCheck}
		for _, b := range r.upstreams[2:] {
			b.Set(testkit.Sick) // it fails its check, but answers
		}
		abortsAt("/poison", r.upstreams[:3]...)
		routes = append(routes, r)
	}
	c := testkit.StartCaddy(t, sites(routes...))
	for _, r := range routes {
		u := r.upstreams
		testkit.Eventually(t, testkit.Patience, "all have a verdict", func() bool {
			return c.Up(u[0].Addr, u[1].Addr) && c.Down(u[2].Addr, u[3].Addr)
		})
	}
	client := c.Client()
	for range 10 {
		for _, r := range routes {
			var got testkit.Answer
			tried := triedBy(r.upstreams, func() { got = testkit.Ask(client, c.URL()+"/"+r.path+"/poison") })
			if r.path == "off" {
				if got.Status != http.StatusBadGateway || tried[2]+tried[3] > 0 {
					t.Errorf("fail_open off: answer %v, tried %v; want 502, and no upstream that is down", got, tried)
				}
				continue
			}
			if got.Body != "d" || tried[0] != 1 || tried[1] != 1 || tried[2] > 1 || tried[3] != 1 {
				t.Errorf("answer %v, tried %v; want that of d, and each at most once", got, tried)
			}
		}
	}
}

// What a request has tried is forgotten in the routes for errors, which may go to the same
// handler.
func TestRetries_RoutesForErrorsAreApart(t *testing.T) {
	all := three(t)
	all[1].Set(testkit.Sick)
	all[2].Set(testkit.Sick)
	abortsAt("/page", all...)
	c := testkit.StartCaddy(t, fmt.Sprintf(`
&(app) {
	reverse_proxy %s {
		lb_policy alive {
			%s
			retries 1
		}
		transport http {
			keepalive off # Go itself repeats requests over connections that it kept
		}
	}
}
http:// {
	invoke app
	handle_errors {
		rewrite /sorry
		invoke app
	}
}`, testkit.Addresses(all...), testkit.QuickCheck))
	testkit.Eventually(t, testkit.Patience, "all have a verdict", func() bool { return c.Up(all[0].Addr) && c.Down(all[1].Addr, all[2].Addr) })
	client := c.Client()
	for range 10 {
		var got testkit.Answer
		tried := triedBy(all, func() { got = testkit.Ask(client, c.URL()+"/page") })
		// the page: the one that serves and one that is down. For the error it starts anew
		if got.Body != "a" || tried[0] != 2 || tried[1]+tried[2] != 1 {
			t.Errorf("answer %v, tried %v; want that of a, which serves", got, tried)
		}
	}
}
