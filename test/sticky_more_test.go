// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// Two pools of one server with one cookie are named by a warning, in which the secret is not.
// Cookies of other names, and pools of the same upstreams with the same secret, are fine.
func TestSticky_SharedCookiesWarn(t *testing.T) {
	backends := testkit.StartBackends(t, "a", "b")
	for _, test := range []struct {
		name          string
		first, second string
		upstream      int // of the second pool
		warns         bool
	}{
		{"one name", "lb", "lb", 1, true},
		{"the default name, once written", "", "lb", 1, true},
		{"two names", "lb", "other", 1, false},
		{"the same upstreams", "lb", "lb", 0, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			pool := func(path, cookie string, upstream int) string {
				return fmt.Sprintf("handle %s {\nreverse_proxy %s {\nlb_policy alive {\n%s\nsticky %s {\nsecret s3cret\n}\n}\n}\n}\n", path, backends[upstream].Addr, testkit.SingleCheck, cookie)
			}
			c := testkit.StartCaddy(t, "http:// {\n"+pool("/first", test.first, 0)+pool("/second", test.second, test.upstream)+"}\n")
			if got := c.Logged("pools of one server bind clients by one cookie") > 0; got != test.warns {
				t.Errorf("it warns: %v, want %v", got, test.warns)
			}
			if n := c.Logged("s3cret"); n > 0 {
				t.Errorf("the secret is in %d lines of the log", n)
			}
		})
	}
}

// A secret from the environment makes the cookies. Neither it nor one in the config is in the
// log, the lists, the page, the metrics, an answer or an error.
func TestSticky_TheSecretIsNotShown(t *testing.T) {
	const written, inEnv = "wr1tten-in-the-config", "k3pt-in-the-environment"
	t.Setenv("ALIVE_TEST_SECRET", inEnv)
	backends := testkit.StartBackends(t, "a", "b")
	pool := func(path, cookie, secret string, upstream int) string {
		return fmt.Sprintf("handle %s {\nreverse_proxy %s {\nlb_policy alive {\n%s\nsticky %s {\nsecret %s\n}\n}\n}\n}\n", path, backends[upstream].Addr, testkit.SingleCheck, cookie, secret)
	}
	site := "http:// {\nalive_status /status\n" + pool("/env", "env", "{env.ALIVE_TEST_SECRET}", 0) + pool("/text", "text", written, 1) + pool("/shared", "text", "{env.ALIVE_TEST_SECRET}", 0) + "}\n"
	c := testkit.StartCaddyWith(t, "debug", site)
	testkit.Eventually(t, testkit.Patience, "both are up", func() bool { return c.Up(addresses(backends)...) })
	if n := c.Logged("pools of one server bind clients by one cookie"); n == 0 {
		t.Error("no warning of pools that share a cookie")
	}
	var shown strings.Builder
	for path, secret := range map[string]string{"/env": inEnv, "/text": written} {
		got := testkit.Ask(c.Client(), c.URL()+path)
		dial := backends[map[string]int{"/env": 0, "/text": 1}[path]].Addr
		if set := got.Header.Get("Set-Cookie"); !strings.HasPrefix(set, path[1:]+"="+valueOf(secret, dial)+";") {
			t.Errorf("%s: the cookie %q is not made with its secret", path, set)
		}
		fmt.Fprintln(&shown, got, got.Header)
	}
	c.Patch(backends[0].Addr, `{"mode":"drain","rebind":true}`)
	for _, path := range []string{"/alive/upstreams", "/alive/pools", "/alive/fleet", "/metrics"} {
		_, text := c.Call(http.MethodGet, path, nil, "")
		shown.WriteString(text)
	}
	for _, accept := range []string{"text/html", "application/json"} {
		got := testkit.AskHost(c.Client(), c.URL()+"/status", "", http.Header{"Accept": {accept}})
		if got.Status != http.StatusOK {
			t.Errorf("the page as %s: %v", accept, got)
		}
		fmt.Fprintln(&shown, got)
	}
	stdout, stderr, err := testkit.Command(t.Context(), c.Admin, "status")
	fmt.Fprintln(&shown, stdout, stderr, err)
	log, err := os.ReadFile(c.LogFile())
	if err != nil {
		t.Fatal(err)
	}
	shown.Write(log)
	for name, text := range map[string]string{ // configs that are wrong
		"after the secret":                "secret " + written + " more",
		"an unknown option":               "secret " + written + "\nmax_agee 1h",
		"twice":                           "secret " + written + "\nsecret " + written + "2",
		"a placeholder that is not known": "secret " + written + "{unknown}",
		"empty once it is resolved":       "secret {env.ALIVE_TEST_NONE}",
		"with a placeholder that is":      "secret {env.ALIVE_TEST_SECRET}{unknown}",
		"beside a wrong age":              "secret " + written + "\nmax_age never",
		"of several lines":                "secret \"" + written + "\n" + written + "\"",
	} {
		_, err := testkit.Validate(t, "Caddyfile", "http:// {\nreverse_proxy "+backends[0].Addr+" {\nlb_policy alive {\nsticky {\n"+text+"\n}\n}\n}\n}\n")
		if err == nil {
			t.Errorf("%s: it is accepted", name)
		} else if text := err.Error(); strings.Contains(text, written) || strings.Contains(text, inEnv) {
			t.Errorf("%s: the error shows the secret: %s", name, text)
		}
	}
	for _, secret := range []string{written, inEnv} {
		if i := strings.Index(shown.String(), secret); i >= 0 {
			t.Errorf("%s is shown: …%s…", secret, shown.String()[max(0, i-200):min(shown.Len(), i+200)])
		}
	}
}

// While a connection to its upstream failed and the checks have not decided, the requests of a
// client go elsewhere without a new cookie. After that they come back.
func TestSticky_SuspicionByConnectKeepsTheCookie(t *testing.T) {
	checks := testkit.StartBackends(t, "check of a", "check of b")
	c, backends := startSticky(t, []string{"a", "b"}, func(b []*testkit.Backend) string {
		site := func(i int) string { return fmt.Sprintf("%s 1\nmax_requests 100 %[1]s", b[i].Addr) }
		return stickySite(b, "weight "+site(0)+"\nweight "+site(1)+`
			check http /healthz {
				address {http.reverse_proxy.upstream.host}:`+portOf(checks[0].Addr)+`
				interval 10m
				fast_interval 200ms
				timeout 5s
			}
			sticky {
				secret s3cret
			}
			retries 2`)
	})
	bound := newVisitors(t, c, 8)
	for _, v := range bound {
		v.ask(c.URL())
	}
	testkit.Shares(t, "at first", at(bound), map[string]int{"a": 4, "b": 4})
	ofA := slices.DeleteFunc(slices.Clone(bound), func(v *visitor) bool { return v.at != "a" })

	checks[0].Set(testkit.Hanging) // so that they do not decide
	backends[0].Set(testkit.Refusing)
	for _, v := range ofA {
		v.wantMore(t, "a refuses, bound to a", c.URL(), "b", 5, 0)
	}
	if row := c.One(backends[0].Addr); !row.Suspect || row.Status != "up" {
		t.Errorf("a is %+v, want a suspect", row)
	}
	for _, v := range newVisitors(t, c, 3) {
		v.wantMore(t, "a is suspect, new", c.URL(), "b", 3, 1)
	}
	backends[0].Set(testkit.Well)
	for _, v := range ofA {
		v.wantMore(t, "a is still suspect, bound to a", c.URL(), "b", 2, 0)
	}
	checks[0].Set(testkit.Well) // a probe that hangs is cut off, and one that follows passes
	testkit.Eventually(t, testkit.Patience, "a is acquitted", func() bool { return !c.One(backends[0].Addr).Suspect })
	for _, v := range ofA {
		v.wantMore(t, "a is acquitted, bound to a", c.URL(), "a", 5, 0)
	}
}

// A suspicion by the outcome of requests does not move clients: another server would begin a
// session of its own. An ejection does.
func TestSticky_SuspicionByOutcomeMovesNone(t *testing.T) {
	checks := testkit.StartBackends(t, "check")
	c, backends := startSticky(t, []string{"a", "b"}, func(b []*testkit.Backend) string {
		return stickySite(b, `check http /healthz {
				address {http.reverse_proxy.upstream.host}:`+portOf(checks[0].Addr)+`
				interval 10m
				fast_interval 200ms
				timeout 5s
			}
			retries off
			eject 5 {
				for 10m
				share 60%
			}
			sticky {
				secret s3cret
			}`)
	})
	bound := newVisitors(t, c, 2)
	for _, v := range bound {
		v.ask(c.URL())
	}
	slices.SortFunc(bound, func(v, w *visitor) int { return strings.Compare(v.at, w.at) })
	if got := at(bound); !maps.Equal(got, map[string]int{"a": 1, "b": 1}) {
		t.Fatalf("at first: %v", got)
	}
	checks[0].Set(testkit.Hanging)
	backends[0].Set(testkit.Shallow)
	for range 2 { // one answer does not accuse
		if got := bound[0].ask(c.URL()); got.Status != http.StatusBadGateway || bound[0].set != 1 {
			t.Errorf("a answers 502: %v, %d cookies", got, bound[0].set)
		}
	}
	testkit.Eventually(t, testkit.Patience, "a is suspect", func() bool { return c.One(backends[0].Addr).Suspect })
	backends[0].Set(testkit.Well)
	bound[0].wantMore(t, "a is suspect, bound to a", c.URL(), "a", 5, 0)
	for _, v := range newVisitors(t, c, 3) {
		v.wantMore(t, "a is suspect, new", c.URL(), "b", 3, 1)
	}
	checks[0].Set(testkit.Well)
	testkit.Eventually(t, testkit.Patience, "a is acquitted", func() bool { return !c.One(backends[0].Addr).Suspect })

	backends[0].Set(testkit.Shallow)
	testkit.Eventually(t, testkit.Patience, "a is ejected", func() bool {
		bound[0].ask(c.URL())
		return c.One(backends[0].Addr).EjectedUntil != nil
	})
	before := bound[0].set
	bound[0].wantMore(t, "a is ejected, bound to a", c.URL(), "b", 1, 2-before)
	bound[0].wantMore(t, "a is ejected, bound to b", c.URL(), "b", 3, 0)
}

// A cookie that none of the upstreams has, whatever it is, is that of a new client: it is
// placed in turn, and gets a cookie.
func TestSticky_ForgedCookiesAreOfNewClients(t *testing.T) {
	c, backends := startSticky(t, []string{"a", "b", "c"}, func(b []*testkit.Backend) string {
		return stickySite(b, quickSticky+"\nweight "+b[2].Addr+" 0")
	})
	real := valueOf("s3cret", backends[0].Addr)
	client := c.Client()
	for name, cookie := range map[string]string{
		"none":                  "",
		"empty":                 "lb=",
		"a random value":        "lb=" + strings.Repeat("0123456789abcdef", 4),
		"of another secret":     "lb=" + valueOf("", backends[0].Addr),
		"of another upstream":   "lb=" + valueOf("s3cret", "127.0.0.1:1"),
		"of one without weight": "lb=" + valueOf("s3cret", backends[2].Addr),
		"an address":            "lb=" + backends[0].Addr,
		"cut off":               "lb=" + real[:63],
		"longer":                "lb=" + real + "0",
		"upper case":            "lb=" + strings.ToUpper(real),
		"of another name":       "lb2=" + real,
		"huge":                  "lb=" + strings.Repeat("a", 12_000),
		"huge, with it inside":  "lb=" + real + strings.Repeat(real, 180),
		"many others":           strings.Repeat("x=y; ", 1000) + "lb=no",
		"characters":            "lb=\"\\ä%00'--",
		"forged before it":      "lb=" + valueOf("", backends[0].Addr) + "; lb=" + real,
	} {
		seen := make(map[string]int)
		for range 4 {
			got := askWith(client, c.URL(), cookie)
			dial := map[string]string{"a": backends[0].Addr, "b": backends[1].Addr}[got.Body]
			want := "lb=" + valueOf("s3cret", dial) + "; Path=/; HttpOnly; SameSite=Lax"
			if cookies := got.Header.Values("Set-Cookie"); got.Status != http.StatusOK || !slices.Equal(cookies, []string{want}) {
				t.Errorf("%s: answer %v with the cookies %q, want one cookie of its upstream", name, got, cookies)
			}
			seen[got.Body]++
		}
		testkit.Shares(t, name, seen, map[string]int{"a": 2, "b": 2})
	}
	for name, cookie := range map[string]string{
		"bound":           "lb=" + real,
		"among others":    "x=y; lb=" + real + "; lb2=no",
		"in quotes":       `lb="` + real + `"`,
		"and then forged": "lb=" + real + "; lb=no",
	} {
		for range 2 {
			got := askWith(client, c.URL(), cookie)
			if cookies := got.Header.Values("Set-Cookie"); got.Body != "a" || len(cookies) != 0 {
				t.Errorf("%s: answer %v with the cookies %q, want one of a without any", name, got, cookies)
			}
		}
	}
}

// Clients stay with their upstream while the answers of a dynamic source have it, in any order
// and beside any others. If it leaves, they move.
func TestSticky_FollowsADynamicSource(t *testing.T) {
	backends := testkit.StartBackends(t, "a", "b", "c")
	a, b, d := backends[0].Addr, backends[1].Addr, backends[2].Addr
	s := testkit.NewSource(t, a, b)
	c := testkit.StartCaddy(t, testkit.DynamicSite(s.Name(), testkit.SingleCheck+"\nsticky {\nsecret s3cret\n}"))
	testkit.Eventually(t, testkit.Patience, "both are up", func() bool {
		testkit.Ask(c.Client(), c.URL())
		return c.Up(a, b)
	})
	four := newVisitors(t, c, 4)
	for _, v := range four {
		v.ask(c.URL())
	}
	testkit.Shares(t, "at first", at(four), map[string]int{"a": 2, "b": 2})
	stay := func(what string) {
		t.Helper()
		for _, v := range four {
			v.wantMore(t, what, c.URL(), v.at, 3, 0)
		}
	}
	stay("bound")
	for _, dials := range [][]string{{b, a}, {a, d, b}, {d, b, a, a}, {b, b, a}} {
		s.Set(dials...)
		stay(fmt.Sprint("with the answer ", dials))
	}
	c.Load(testkit.DynamicSite(s.Name(), testkit.SingleCheck+"\nsticky {\nsecret s3cret\n}", "header_up X-Version 2"))
	stay("after a reload")
	s.Set(b, d)
	for _, v := range four {
		switch v.at {
		case "a":
			v.ask(c.URL())
			if v.at == "a" || v.set != 2 {
				t.Errorf("a has left: answer of %s, %d cookies in all", v.at, v.set)
			}
		default:
			v.wantMore(t, "a has left, bound to b", c.URL(), "b", 1, 0)
		}
	}
	s.Set(a, b, d)
	stay("after a has returned")
}

// As the fallback of a policy that tells it of no answer, there is no cookie. A client that has
// one goes to its upstream all the same.
func TestSticky_NoCookieAsAFallback(t *testing.T) {
	for _, policy := range []string{"header X-Key", "query key"} {
		t.Run(strings.Fields(policy)[0], func(t *testing.T) {
			c, backends := startSticky(t, []string{"a", "b"}, func(b []*testkit.Backend) string {
				return fmt.Sprintf("http:// {\nreverse_proxy %s {\nlb_policy %s {\nfallback alive {\n%s\n}\n}\n}\n}\n", testkit.Addresses(b...), policy, quickSticky)
			})
			client := c.Client()
			seen := make(map[string]int)
			for range 6 {
				got := testkit.Ask(client, c.URL())
				if cookies := got.Header.Values("Set-Cookie"); got.Status != http.StatusOK || len(cookies) != 0 {
					t.Errorf("answer %v with the cookies %q, want 200 without any", got, cookies)
				}
				seen[got.Body]++
			}
			testkit.Shares(t, "in turn", seen, map[string]int{"a": 3, "b": 3})
			for _, b := range backends {
				for range 3 {
					if got := askWith(client, c.URL(), "lb="+valueOf("s3cret", b.Addr)); got.Body != b.Name {
						t.Errorf("bound to %s: answer %v", b.Name, got)
					}
				}
			}
		})
	}
}

// A client whose upstream is full goes to another one at once, with a new cookie. With a queue
// it waits for its own, and moves after the timeout, also with one cookie.
func TestSticky_FullUpstreams(t *testing.T) {
	for name, queue := range map[string]string{"no queue": "", "a queue": "queue 30s", "a short queue": "queue 300ms"} {
		t.Run(name, func(t *testing.T) {
			c, backends := startSticky(t, []string{"a", "b"}, func(b []*testkit.Backend) string {
				return stickySite(b, quickSticky+"\nmax_requests 1\n"+queue)
			})
			gates := make(map[string]*testkit.Gate)
			for _, b := range backends {
				gate := testkit.NewGate(t)
				gates[b.Name] = gate
				b.Answer(func(_ http.ResponseWriter, r *http.Request) bool {
					if r.URL.Path == "/held" {
						gate.Pass(r)
					}
					return false
				})
			}
			v := newVisitors(t, c, 1)[0]
			v.ask(c.URL())
			own, other := backends[0], backends[1]
			if v.at == "b" {
				own, other = other, own
			}
			held := make(chan testkit.Answer, 1)
			go func() { held <- askWith(c.Client(), c.URL()+"/held", "lb="+valueOf("s3cret", own.Addr)) }()
			testkit.Eventually(t, testkit.Patience, "its upstream is full", func() bool { return c.One(own.Addr).Requests == 1 })
			switch name {
			case "no queue":
				v.wantMore(t, "full", c.URL(), other.Name, 1, 1)
			case "a short queue":
				began := time.Now()
				v.wantMore(t, "full, after the timeout", c.URL(), other.Name, 1, 1)
				if took := time.Since(began); took < 300*time.Millisecond {
					t.Errorf("it moved after %s, want the timeout", took)
				}
			default:
				answer := make(chan testkit.Answer, 1)
				go func() { answer <- v.ask(c.URL()) }()
				testkit.Eventually(t, testkit.Patience, "it waits", func() bool { return c.Pools("shop")[0].Queue.Waiting == 1 })
				for _, w := range newVisitors(t, c, 3) { // the other one has room for others
					w.wantMore(t, "new, while a bound one waits", c.URL(), other.Name, 1, 1)
				}
				gates[own.Name].Open()
				if got := testkit.Wait(t, answer, testkit.Patience); got.Body != own.Name || v.set != 1 {
					t.Errorf("it waited: answer %v, %d cookies in all, want its own upstream and no new one", got, v.set)
				}
			}
			gates[own.Name].Open()
			if got := testkit.Wait(t, held, testkit.Patience); got.Body != own.Name || len(got.Header.Values("Set-Cookie")) != 0 {
				t.Errorf("the one that was held: %v", got)
			}
			want := other.Name
			if name == "a queue" {
				want = own.Name
			}
			v.wantMore(t, "afterwards", c.URL(), want, 3, 0)
		})
	}
}

// portOf returns the port of an address.
func portOf(address string) string {
	u := url.URL{Host: address}
	return u.Port()
}
