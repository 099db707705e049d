// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"fmt"
	"maps"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/caddy-alive/caddy-alive/internal/health"
)

// Weights, backups and the last resort, over the wire: exact among those that
// are left, and the named upstreams are found however they are written.
func TestCaddyWeightsAndBackups(t *testing.T) {
	backends := startBackends(t, "a", "b", "c", "spare")
	c := startCaddy(t, fmt.Sprintf(`
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
}`, addresses(backends...), backends[0].addr, backends[1].addr, backends[3].addr))
	a, b, third := backends[0], backends[1], backends[2]
	eventually(t, patience, "all are up", func() bool {
		return statuses(a.addr, b.addr, third.addr, backends[3].addr)[health.Up] == 4
	})
	client := c.plain()
	for _, step := range []struct {
		sick []*backend
		want map[string]int
	}{
		{nil, map[string]int{"a": 50, "b": 20, "c": 10}},
		{[]*backend{a}, map[string]int{"b": 20, "c": 10}},
		{[]*backend{a, b, third}, map[string]int{"spare": 30}},
		{backends, map[string]int{"a": 50, "b": 20, "c": 10}}, // the last resort: they still answer
	} {
		requests := 0
		for _, n := range step.want {
			requests += n
		}
		for _, up := range backends {
			up.set(well)
		}
		for _, down := range step.sick {
			down.set(sick)
		}
		eventually(t, patience, fmt.Sprintf("%d are down", len(step.sick)), func() bool {
			return statuses(a.addr, b.addr, third.addr, backends[3].addr)[health.Down] == len(step.sick)
		})
		if got := tally(client, c.url(), requests); !maps.Equal(got, step.want) {
			t.Errorf("with %d sick: served by %v, want %v", len(step.sick), got, step.want)
		}
	}
}

// With fail_open off, nobody alive is 503.
func TestCaddyFailOpenOff(t *testing.T) {
	b := startBackend(t, "a", nil)
	b.set(sick)
	c := startCaddy(t, "http:// {\nreverse_proxy "+b.addr+" {\nlb_policy alive /healthz {\nfail_open off\n}\n}\n}")
	eventually(t, patience, "it is down", func() bool { return is(health.Down, b.addr) })
	if got := ask(c.plain(), c.url()); got.status != http.StatusServiceUnavailable {
		t.Errorf("answer %v, want 503", got)
	}
}

// A sticky cookie holds while its upstream is alive, moves on when it is not, and
// no request meets a dead one on the way.
func TestCaddySelectCookie(t *testing.T) {
	backends := startBackends(t, "a", "b", "c")
	c := startCaddy(t, fmt.Sprintf(`
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
}`, addresses(backends...)))
	eventually(t, patience, "all are up", func() bool {
		return statuses(backends[0].addr, backends[1].addr, backends[2].addr)[health.Up] == 3
	})
	client := c.plain()
	// sticky asks with the cookie that the answer before it set
	var cookie string
	sticky := func() string {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, c.url(), nil)
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
		if b.name == first {
			b.set(sick)
			eventually(t, patience, "it is down", func() bool { return is(health.Down, b.addr) })
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
	b := startBackend(t, "a", nil)
	for policy, warns := range map[string]bool{
		"lb_policy cookie {\nfallback alive\n}": true,
		"lb_policy alive {\nselect cookie\n}":   false,
		"lb_policy alive":                       false,
	} {
		c := startCaddy(t, "http:// {\nreverse_proxy "+b.addr+" {\n"+policy+"\n}\n}")
		if got := ask(c.plain(), c.url()); got.status != http.StatusOK {
			t.Errorf("%s: answer %v, want 200", policy, got)
		}
		log, err := os.ReadFile(c.logFile())
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(string(log), "as the fallback of another policy"); got != warns {
			t.Errorf("%s: warned %v, want %v", policy, got, warns)
		}
		c.stop()
	}
}
