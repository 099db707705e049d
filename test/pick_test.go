// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"maps"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// Weights, backups and the last resort, over the wire: exact among those that
// are left, and the named upstreams are found however they are written.
func TestCaddyWeightsAndBackups(t *testing.T) {
	backends := testkit.StartBackends(t, "a", "b", "c", "spare")
	c := testkit.StartCaddy(t, fmt.Sprintf(`
http:// {
	reverse_proxy %s {
		lb_policy alive {
			check http /healthz {
				interval 300ms
				fast_interval 100ms
			}
			weight http://%s 5
			weight %s 2
			backup %s
		}
	}
}`, testkit.Addresses(backends...), backends[0].Addr, backends[1].Addr, backends[3].Addr))
	a, b, third := backends[0], backends[1], backends[2]
	testkit.Eventually(t, testkit.Patience, "all are up", func() bool {
		return c.Up(a.Addr, b.Addr, third.Addr, backends[3].Addr)
	})
	client := c.Client()
	for _, step := range []struct {
		sick []*testkit.Backend
		want map[string]int
	}{
		{nil, map[string]int{"a": 50, "b": 20, "c": 10}},
		{[]*testkit.Backend{a}, map[string]int{"b": 20, "c": 10}},
		{[]*testkit.Backend{a, b, third}, map[string]int{"spare": 30}},
		{backends, map[string]int{"a": 50, "b": 20, "c": 10}}, // the last resort: they still answer
	} {
		requests := 0
		for _, n := range step.want {
			requests += n
		}
		for _, up := range backends {
			up.Set(testkit.Well)
		}
		for _, down := range step.sick {
			down.Set(testkit.Sick)
		}
		testkit.Eventually(t, testkit.Patience, fmt.Sprintf("%d are down", len(step.sick)), func() bool {
			return c.Statuses(a.Addr, b.Addr, third.Addr, backends[3].Addr)["down"] == len(step.sick)
		})
		if got := testkit.Tally(client, c.URL(), requests); !maps.Equal(got, step.want) {
			t.Errorf("with %d sick: served by %v, want %v", len(step.sick), got, step.want)
		}
	}
}

// With fail_open off, nobody alive is 503.
func TestCaddyFailOpenOff(t *testing.T) {
	b := testkit.StartBackend(t, "a", nil)
	b.Set(testkit.Sick)
	c := testkit.StartCaddy(t, "http:// {\nreverse_proxy "+b.Addr+" {\nlb_policy alive /healthz {\nfail_open off\n}\n}\n}")
	testkit.Eventually(t, testkit.Patience, "it is down", func() bool { return c.Down(b.Addr) })
	if got := testkit.Ask(c.Client(), c.URL()); got.Status != http.StatusServiceUnavailable {
		t.Errorf("answer %v, want 503", got)
	}
}

// A sticky cookie holds while its upstream is alive, moves on when it is not, and
// no request meets a dead one on the way.
func TestCaddySelectCookie(t *testing.T) {
	backends := testkit.StartBackends(t, "a", "b", "c")
	c := testkit.StartCaddy(t, fmt.Sprintf(`
http:// {
	reverse_proxy %s {
		lb_policy alive {
			check http /healthz {
				interval 300ms
				fast_interval 100ms
			}
			select cookie lb secret {
				fallback round_robin
			}
		}
	}
}`, testkit.Addresses(backends...)))
	testkit.Eventually(t, testkit.Patience, "all are up", func() bool {
		return c.Up(backends[0].Addr, backends[1].Addr, backends[2].Addr)
	})
	client := c.Client()
	// sticky asks with the cookie that the answer before it set
	var cookie string
	sticky := func() string {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, c.URL(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if cookie != "" {
			req.Header.Set("Cookie", cookie)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if set := resp.Header.Get("Set-Cookie"); set != "" {
			cookie, _, _ = strings.Cut(set, ";")
		}
		var name [16]byte
		n, _ := resp.Body.Read(name[:])
		return string(name[:n])
	}
	first := sticky()
	for range 20 {
		if got := sticky(); got != first {
			t.Fatalf("served by %q, want the same as before: %q", got, first)
		}
	}
	for _, b := range backends {
		if b.Name == first {
			b.Set(testkit.Sick)
			testkit.Eventually(t, testkit.Patience, "it is down", func() bool { return c.Down(b.Addr) })
		}
	}
	second := sticky()
	if second == first {
		t.Errorf("served by %q, which is down", second)
	}
	for range 20 {
		if got := sticky(); got != second {
			t.Fatalf("served by %q, want the new one: %q", got, second)
		}
	}
}

// As the fallback of another policy, this one cannot keep its requests away from
// the dead: that is said when the config loads.
func TestCaddyFallbackWarns(t *testing.T) {
	b := testkit.StartBackend(t, "a", nil)
	for policy, warns := range map[string]bool{
		"lb_policy cookie {\nfallback alive\n}": true,
		"lb_policy alive {\nselect cookie\n}":   false,
		"lb_policy alive":                       false,
	} {
		c := testkit.StartCaddy(t, "http:// {\nreverse_proxy "+b.Addr+" {\n"+policy+"\n}\n}")
		if got := testkit.Ask(c.Client(), c.URL()); got.Status != http.StatusOK {
			t.Errorf("%s: answer %v, want 200", policy, got)
		}
		log, err := os.ReadFile(c.LogFile())
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(string(log), "as the fallback of another policy"); got != warns {
			t.Errorf("%s: warned %v, want %v", policy, got, warns)
		}
		c.Stop()
	}
}
