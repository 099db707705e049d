// SPDX-License-Identifier: Apache-2.0

package source

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

func TestMain(m *testing.M) { os.Exit(testkit.Main(m)) }

// sourceOf returns the JSON of a source that stands after `dynamic` in a Caddyfile.
func sourceOf(t *testing.T, text string) json.RawMessage {
	t.Helper()
	d := caddyfile.NewTestDispenser(text)
	d.Next()
	module, err := caddyfile.UnmarshalModule(d, "http.reverse_proxy.upstreams."+d.Val())
	if err != nil {
		t.Fatal(err)
	}
	kind, _, _ := strings.Cut(text, " ")
	return caddyconfig.JSONModuleObject(module, "source", kind, nil)
}

// tryLoad loads a source until the test ends.
func tryLoad(t *testing.T, raw json.RawMessage, stale *time.Duration) (Loaded, error) {
	t.Helper()
	ctx, cancel := caddy.NewContext(caddy.Context{Context: context.Background()})
	t.Cleanup(cancel)
	loaded, err := Load(ctx, raw, stale, zap.NewNop())
	if loaded != nil {
		t.Cleanup(func() {
			if err := loaded.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	return loaded, err
}

// load loads one whose last answer is used for an hour.
func load(t *testing.T, text string) Loaded {
	t.Helper()
	hour := time.Hour
	loaded, err := tryLoad(t, sourceOf(t, text), &hour)
	if err != nil {
		t.Fatal(err)
	}
	return loaded
}

// dialsOf returns what a request gets from a source.
func dialsOf(s reverseproxy.UpstreamSource) ([]string, error) {
	upstreams, err := s.GetUpstreams(request(context.Background()))
	var dials []string
	for _, u := range upstreams {
		dials = append(dials, u.Dial)
	}
	return dials, err
}

// Which sources are used beyond their failure, by default and as written, and how they are
// asked.
func TestLoad_WhichSources(t *testing.T) {
	own := testkit.NewSource(t, "a:80").Name()
	_, id, _ := strings.Cut(own, " ")
	ownRaw := `{"source":"alive_test_source","id":"` + id + `"}`
	hour, day, off := time.Hour, 24*time.Hour, time.Duration(0)
	for _, tc := range []struct {
		what, raw string
		stale     *time.Duration
		want      string
	}{
		{"a", `{"source":"a","name":"app1"}`, nil, "1h0m0s, in the background, fresh for 1m0s"},
		{"a with a time", `{"source":"a","name":"app1","refresh":"5s"}`, &day, "24h0m0s, in the background, fresh for 5s"},
		{"a that is off", `{"source":"a","name":"app1"}`, &off, "left to Caddy"},
		{"a with a global placeholder", `{"source":"a","name":"{env.APP}.{system.hostname}","port":"{env.PORT}"}`, nil, "1h0m0s, in the background, fresh for 1m0s"},
		{"a whose name can change", `{"source":"a","name":"{file./run/app}"}`, nil, "1h0m0s, by requests"},
		{"a whose name depends on the request", `{"source":"a","name":"{http.request.host}"}`, nil, "left to Caddy"},
		{"a whose port comes from a map", `{"source":"a","name":"app1","port":"{port}"}`, nil, "left to Caddy"},
		{"srv", `{"source":"srv","name":"_api._tcp.app","grace_period":"5m"}`, nil, "1h0m0s, in the background, fresh for 1m0s"},
		{"srv whose service depends on the request", `{"source":"srv","service":"{http.request.host.labels.2}","proto":"tcp","name":"app"}`, nil, "left to Caddy"},
		{"another source", ownRaw, nil, "left to Caddy"},
		{"another source with a time", ownRaw, &hour, "1h0m0s, by requests"},
		{"another source that is off", ownRaw, &off, "left to Caddy"},
		{"multi", `{"source":"multi","sources":[{"source":"a","name":"app1"},` + ownRaw + `,{"source":"srv","name":"{http.request.host}"}]}`, nil, "multi: 1h0m0s, in the background, fresh for 1m0s"},
		{"multi with a time", `{"source":"multi","sources":[{"source":"multi","sources":[{"source":"a","name":"app1"}]},` + ownRaw + `]}`, &day, "multi: 24h0m0s, in the background, fresh for 1m0s; 24h0m0s, by requests"},
		{"multi that is off", `{"source":"multi","sources":[{"source":"a","name":"app1"}]}`, &off, "left to Caddy"},
		{"multi of other sources", `{"source":"multi","sources":[` + ownRaw + `]}`, nil, "left to Caddy"},
		{"no source", ``, nil, "left to Caddy"},
	} {
		t.Run(tc.what, func(t *testing.T) {
			loaded, err := tryLoad(t, []byte(tc.raw)[:len(tc.raw):len(tc.raw)], tc.stale)
			if err != nil {
				t.Fatal(err)
			}
			describe := func(s *Source) string {
				if srv, ok := s.inner.(*reverseproxy.SRVUpstreams); ok && srv.GracePeriod != 0 {
					t.Errorf("the grace period is %s, want none", time.Duration(srv.GracePeriod))
				}
				if s.background {
					return fmt.Sprintf("%s, in the background, fresh for %s", s.stale, s.refresh)
				}
				return fmt.Sprintf("%s, by requests", s.stale)
			}
			got := "left to Caddy"
			switch loaded := loaded.(type) {
			case *Source:
				got = describe(loaded)
			case *aggregate:
				var parts []string
				for _, s := range loaded.sources {
					parts = append(parts, describe(s))
				}
				got = "multi: " + strings.Join(parts, "; ")
			}
			if got != tc.want {
				t.Errorf("got %s, want %s", got, tc.want)
			}
		})
	}
}

// What cannot be is an error that says what is allowed, and leaves nothing behind.
func TestLoad_ErrorsSayWhatIsAllowed(t *testing.T) {
	hour, second, nanosecond := time.Hour, time.Second, time.Nanosecond
	const depends = " can depend on the request, and then the last answer is of no use for other requests; only global placeholders, such as {env.*}, are allowed; write stale off, or remove stale"
	for _, tc := range []struct {
		raw   string
		stale *time.Duration
		want  string
	}{
		{``, &hour, "stale has no meaning without a dynamic source: it is how long the last answer of one is used while the source fails; add a source, like dynamic a, or remove stale"},
		{`{"source":"a","name":"app1"}`, &nanosecond, `stale must be a duration from 1s to 24h, like 1h, or 0 for off; got '1ns'; a number without a unit is in nanoseconds in JSON: write "1s"`},
		{`{"source":"a","name":"{http.request.host}","port":"80"}`, &second, "stale cannot be combined with the dynamic source 'a {http.request.host} 80': its placeholder {http.request.host}" + depends},
		{`{"source":"own","token":"x","filters":[{"tag":"{http.vars.tag}"}]}`, &second, "stale cannot be combined with the dynamic source 'own': its placeholder {http.vars.tag}" + depends},
		{`{"source":"multi","sources":[{"source":"a","name":"app1"},{"source":"a","name":"{app}"}]}`, &second, "sources: position 1: stale cannot be combined with the dynamic source 'a {app}': its placeholder {app}" + depends},
		{`{"source":"a","nam":"app1"}`, nil, `loading upstream source module: loading module 'a': decoding module config: http.reverse_proxy.upstreams.a: json: unknown field "nam"`},
		{`{"source":"multi","sources":[{"source":"a","name":"app1"},{"source":"nosuch"}]}`, nil, "sources: position 1: loading upstream source module: loading module 'nosuch': unknown module: http.reverse_proxy.upstreams.nosuch"},
		{`{"source":"multi","names":[],"sources":[{"source":"a","name":"app1"}]}`, nil, `loading upstream source module: decoding multi: json: unknown field "names"`},
	} {
		t.Run(tc.want, func(t *testing.T) {
			raw := json.RawMessage(tc.raw)
			if tc.raw == "" {
				raw = nil
			}
			if _, err := tryLoad(t, raw, tc.stale); err == nil || !strings.HasSuffix(err.Error(), tc.want) && !strings.HasPrefix(err.Error(), tc.want) {
				t.Errorf("got error %v\nwant %s", err, tc.want)
			}
			testkit.WantNothingShared(t)
		})
	}
}

// Braces that are no placeholder are allowed in the options of other sources.
func TestFindPlaceholders_LooksAtAllTexts(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		raw    string
		strict bool
		want   placeholders
	}{
		{`{"name":"app1"}`, true, placeholders{}},
		{`{"name":"{env.A}"}`, true, placeholders{}},
		{`{"name":"\\{x\\}"}`, true, placeholders{}},
		{`{"name":"{1}"}`, true, placeholders{ofRequest: "1"}},
		{`{"expr":"a{1}","json":"{\"a\":1}","template":"{{.Name}}"}`, false, placeholders{}},
		{`{"expr":"{vars.a}"}`, false, placeholders{ofRequest: "vars.a"}},
		{`{"b":"{http.b}","a":[{"x":"{http.a}"}]}`, false, placeholders{ofRequest: "http.a"}},
		{`{"name":"{time.now.year}.app"}`, true, placeholders{change: true}},
		{`{"name":"{file./run/app}{http.request.host}"}`, true, placeholders{ofRequest: "http.request.host", change: true}},
	} {
		if got := findPlaceholders(json.RawMessage(tc.raw), tc.strict); got != tc.want {
			t.Errorf("%s: got %+v, want %+v", tc.raw, got, tc.want)
		}
	}
}

// The answers of a name server for `dynamic a` and `dynamic srv`, each after a good one and
// before another one: what is a failure, and what is obeyed.
func TestLoad_AnswersOfANameServer(t *testing.T) {
	t.Parallel()
	const missing = "no such host"
	many := make([]string, 200)
	for i := range many {
		many[i] = fmt.Sprintf("10.1.0.%d", i)
	}
	for _, tc := range []struct {
		what   string
		answer testkit.Records
		want   string // empty if the last answer goes on
	}{
		{"SERVFAIL", testkit.Records{RCode: dnsmessage.RCodeServerFailure}, ""},
		{"REFUSED", testkit.Records{RCode: dnsmessage.RCodeRefused}, ""},
		{"no answer at all", testkit.Records{Silent: true}, ""},
		{"NXDOMAIN", testkit.Records{RCode: dnsmessage.RCodeNameError}, missing},
		{"no records", testkit.Records{}, missing},
		// Caddy does not ask again over TCP, and then Go takes the answer for one without records
		{"an answer that is truncated", testkit.Records{A: many, SRV: slices.Repeat([]string{"app.test.:81"}, 200)}, missing},
	} {
		for _, kind := range []string{"a", "srv"} {
			t.Run(kind+", "+tc.what, func(t *testing.T) {
				t.Parallel()
				n, name := testkit.StartNameServer(t), testkit.NewName()
				text, good, next := n.Source(name, 80), "10.0.0.1:80", "10.0.0.2:80"
				if kind == "srv" {
					text, good, next = n.ServiceSource(name), "app.test.:80", "app.test.:82"
				}
				host, _, _ := strings.Cut(good, ":")
				n.Set(name, testkit.Records{A: []string{host}, SRV: []string{good}})
				s := load(t, text)
				get := func() (string, time.Duration) {
					begin := time.Now()
					dials, err := dialsOf(s)
					if err != nil && strings.Contains(err.Error(), missing) {
						return missing, time.Since(begin)
					}
					if err != nil {
						return err.Error(), time.Since(begin)
					}
					return strings.Join(dials, " "), time.Since(begin)
				}
				if got, _ := get(); got != good {
					t.Fatalf("got %q, want %q", got, good)
				}
				before := n.Queries(name)
				n.Set(name, tc.answer)
				testkit.Eventually(t, testkit.Patience, "another look-up", func() bool {
					_, _ = get()
					return n.Queries(name) > before
				})
				want := tc.want
				if want == "" {
					want = good
				} else {
					testkit.Eventually(t, testkit.Patience, "it is obeyed", func() bool { got, _ := get(); return got == want })
				}
				for range 20 {
					if got, waited := get(); got != want || waited > patience+testkit.Slack {
						t.Errorf("got %q after %s, want %q", got, waited, want)
					}
					time.Sleep(10 * time.Millisecond)
				}
				if tc.answer.Silent { // until it is known to fail takes ten seconds
					return
				}
				host, _, _ = strings.Cut(next, ":")
				n.Set(name, testkit.Records{A: []string{host}, SRV: []string{next}})
				testkit.Eventually(t, testkit.Patience, "the next good answer", func() bool { got, _ := get(); return got == next })
			})
		}
	}
}

// Two hundred addresses fit into an answer over TCP.
func TestLoad_TwoHundredAddresses(t *testing.T) {
	n, name := testkit.StartNameServer(t), testkit.NewName()
	var addresses, want []string
	for i := range 200 {
		addresses = append(addresses, fmt.Sprintf("10.1.0.%d", i))
		want = append(want, fmt.Sprintf("10.1.0.%d:80", i))
	}
	n.Set(name, testkit.Records{A: addresses})
	s := load(t, strings.ReplaceAll(n.Source(name, 80), "resolvers ", "resolvers tcp/"))
	for range 3 {
		got, err := dialsOf(s)
		if slices.Sort(got); err != nil || len(got) != 200 || !slices.Equal(got, slices.Sorted(slices.Values(want))) {
			t.Errorf("got %d upstreams, %v, want 200: %v", len(got), err, got)
		}
		time.Sleep(60 * time.Millisecond)
	}
}

// Each part of a multi goes on with its own last answer. One that is left to Caddy is left
// out while it fails, and so is one without upstreams.
func TestLoad_PartsOfMultiFailAlone(t *testing.T) {
	n, first, second := testkit.StartNameServer(t), testkit.NewName(), testkit.NewName()
	own := testkit.NewSource(t, "10.0.0.3:80")
	n.Set(first, testkit.Records{A: []string{"10.0.0.1"}})
	n.Set(second, testkit.Records{A: []string{"10.0.0.2"}})
	_, id, _ := strings.Cut(own.Name(), " ")
	raw := json.RawMessage(fmt.Sprintf(`{"source":"multi","sources":[%s,%s,{"source":"alive_test_source","id":%q}]}`,
		sourceOf(t, n.Source(first, 80)), sourceOf(t, n.Source(second, 80)), id))
	hour := time.Hour
	byDefault, err := tryLoad(t, raw, nil)
	if err != nil {
		t.Fatal(err)
	}
	written, err := tryLoad(t, raw, &hour)
	if err != nil {
		t.Fatal(err)
	}
	soon := func(what string, s Loaded, want ...string) {
		t.Helper()
		var got []string
		var err error
		if !testkit.Poll(testkit.Patience, func() bool { got, err = dialsOf(s); return err == nil && slices.Equal(got, want) }) {
			t.Errorf("%s: got %v, %v, want %v", what, got, err, want)
		}
	}
	soon("all is well", byDefault, "10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80")
	soon("all is well", written, "10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80")
	n.Set(first, testkit.Records{RCode: dnsmessage.RCodeServerFailure})
	n.Set(second, testkit.Records{A: []string{"10.0.0.4"}})
	soon("the first fails", byDefault, "10.0.0.1:80", "10.0.0.4:80", "10.0.0.3:80")
	n.Set(second, testkit.Records{})
	own.Answer(func(*http.Request) ([]string, error) { return nil, errDown })
	soon("the second is empty, and the last one fails", byDefault, "10.0.0.1:80")
	soon("the same with a time", written, "10.0.0.1:80", "10.0.0.3:80")
	ctx, leave := context.WithCancel(context.Background())
	leave()
	if upstreams, err := byDefault.GetUpstreams(request(ctx)); len(upstreams) != 0 || err == nil {
		t.Errorf("a client that has left: got %v, %v, want an error", upstreams, err)
	}
}
