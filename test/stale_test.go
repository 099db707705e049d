// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

const (
	sourceFails   = "the dynamic source fails; its last answer is used"
	answerTooOld  = "the dynamic source fails; its last answer is too old"
	sourceAnswers = "the dynamic source answers again"
)

// service is two backends, and what a name server says of them.
type service struct {
	source       string // for `dynamic`
	transport    string // options of the handler
	all          []*testkit.Backend
	both, second testkit.Records
}

// startService starts one for `dynamic a` or `dynamic srv`.
func startService(t *testing.T, kind string, n *testkit.NameServer, name string) service {
	t.Helper()
	if kind == "a" {
		port, all := testkit.StartLoopbacks(t, testkit.Well, testkit.Well)
		return service{n.Source(name, port), "", all, testkit.Records{A: []string{"127.0.0.1", "127.0.0.2"}}, testkit.Records{A: []string{"127.0.0.2"}}}
	}
	all, host := testkit.StartBackends(t, "a", "b"), "node."+name
	n.Set(host, testkit.Records{A: []string{"127.0.0.1"}})
	targets := make([]string, 0, len(all))
	for _, b := range all {
		targets = append(targets, strings.Replace(b.Addr, "127.0.0.1:", host+":", 1))
	}
	return service{
		n.ServiceSource(name), "transport http {\nresolvers " + n.Addr() + "\n}", all,
		testkit.Records{SRV: targets},
		testkit.Records{SRV: targets[1:]},
	}
}

// wantAllQuick checks that no request failed, and that none waited for a name server that
// takes seconds to fail.
func wantAllQuick(t *testing.T, what string, all []testkit.Sent) {
	t.Helper()
	bad := 0
	for _, sent := range all {
		if sent.Failed() || sent.Ended.Sub(sent.Began) > testkit.Slack {
			if bad++; bad <= 5 {
				t.Errorf("%s: %s", what, sent)
			}
		}
	}
	if bad > 0 || len(all) < 20 {
		t.Errorf("%s: %d of %d requests failed or were late, want none of 20 at least", what, bad, len(all))
	}
}

// While a name server fails, in whatever way, requests go on with its last answer: in the
// usual order, over a reload, and without those that fail their checks. It is asked a few
// times, and said once. What it answers afterwards is used.
func TestStale_FailingNameServerStopsNothing(t *testing.T) {
	for _, kind := range []string{"a", "srv"} {
		t.Run(kind, func(t *testing.T) {
			n, name := testkit.StartNameServer(t), testkit.NewName()
			of := startService(t, kind, n, name)
			n.Set(name, of.both)
			site := testkit.DynamicSite(of.source, testkit.QuickCheck, of.transport)
			c := testkit.StartCaddy(t, site)
			client := c.Client()
			testkit.Settles(t, "all is well", client, c.URL(), map[string]int{"a": 3, "b": 3})

			load := testkit.OpenLoop(t, 5*time.Millisecond, func() testkit.Answer { return testkit.Ask(client, c.URL()) })
			n.Set(name, testkit.Records{RCode: dnsmessage.RCodeServerFailure})
			testkit.Eventually(t, testkit.Patience, "the failure is logged", func() bool { return c.Logged(sourceFails) == 1 })
			load.Await(t, 50)
			for _, answer := range []testkit.Records{{RCode: dnsmessage.RCodeRefused}, {Silent: true}} {
				n.Set(name, answer)
				load.Await(t, 200)
			}
			wantAllQuick(t, "it fails", load.Stop())
			testkit.Shares(t, "it fails", testkit.Tally(client, c.URL(), 6), map[string]int{"a": 3, "b": 3})
			if kind == "srv" {
				return // what follows is the same for both
			}

			c.Load(strings.Replace(site, "http:// {", "http:// {\nheader Version 2", 1))
			client = c.Client()
			testkit.Settles(t, "after a reload", client, c.URL(), map[string]int{"a": 3, "b": 3})
			of.all[0].Set(testkit.Sick)
			testkit.Settles(t, "one fails its check", client, c.URL(), map[string]int{"b": 6})
			of.all[0].Set(testkit.Well)
			testkit.Settles(t, "it is back", client, c.URL(), map[string]int{"a": 3, "b": 3})
			if got := c.Logged(sourceFails); got != 1 {
				t.Errorf("%d lines of the failure, want 1", got)
			}
			if got := c.Logged("failed getting dynamic upstreams"); got != 0 {
				t.Errorf("%d errors logged for requests, want none", got)
			}

			n.Set(name, of.second)
			testkit.Eventually(t, testkit.Patience, "the next good answer is used", func() bool {
				return maps.Equal(testkit.Tally(client, c.URL(), 6), map[string]int{"b": 6})
			})
			testkit.Eventually(t, testkit.Patience, "that is logged", func() bool { return c.Logged(sourceAnswers) == 1 })
		})
	}
}

// A name server that hangs from one moment to the next delays no request, not even the
// first ones that meet it.
func TestStale_HangingNameServerDelaysNoRequest(t *testing.T) {
	n, name := testkit.StartNameServer(t), testkit.NewName()
	of := startService(t, "a", n, name)
	n.Set(name, of.both)
	c := testkit.StartCaddy(t, testkit.DynamicSite(of.source, testkit.QuickCheck))
	client := c.Client()
	testkit.Settles(t, "all is well", client, c.URL(), map[string]int{"a": 3, "b": 3})
	load := testkit.OpenLoop(t, 5*time.Millisecond, func() testkit.Answer { return testkit.Ask(client, c.URL()) })
	load.Await(t, 20)
	before := n.Queries(name)
	n.Set(name, testkit.Records{Silent: true})
	testkit.Eventually(t, testkit.Patience, "it is asked", func() bool { return n.Queries(name) > before })
	load.Await(t, 300)
	wantAllQuick(t, "it hangs", load.Stop())
	n.Set(name, of.both)
}

// After the time of stale, the upstreams in the list serve, until the source answers again.
func TestStale_OldAnswerFallsBackToTheList(t *testing.T) {
	n, name := testkit.StartNameServer(t), testkit.NewName()
	of := startService(t, "a", n, name)
	static := testkit.StartBackend(t, "static", nil)
	n.Set(name, of.second)
	c := testkit.StartCaddy(t, fmt.Sprintf("http:// {\nreverse_proxy %s {\ndynamic %s\nlb_policy alive {\n%s\nstale 2s\n}\n}\n}", static.Addr, of.source, testkit.QuickCheck))
	client := c.Client()
	testkit.Settles(t, "all is well", client, c.URL(), map[string]int{"b": 6})
	load := testkit.OpenLoop(t, 5*time.Millisecond, func() testkit.Answer { return testkit.Ask(client, c.URL()) })
	began := time.Now()
	n.Set(name, testkit.Records{RCode: dnsmessage.RCodeServerFailure})
	testkit.Eventually(t, testkit.Patience, "the list serves", func() bool { return testkit.Ask(client, c.URL()).Body == "static" })
	if took := time.Since(began); took < 1500*time.Millisecond {
		t.Errorf("the list serves after %s, want the last answer for 2 s", took)
	}
	load.Await(t, 50)
	sent := load.Stop()
	wantAllQuick(t, "it fails", sent)
	// the list serves from one moment on; requests that overlap may be picked in any order
	var listed time.Time
	slices.SortFunc(sent, func(a, b testkit.Sent) int { return a.Ended.Compare(b.Ended) })
	for _, s := range sent {
		switch {
		case s.Body == "static" && listed.IsZero():
			listed = s.Ended
		case s.Body == "b" && !listed.IsZero() && s.Began.After(listed):
			t.Errorf("an answer of the source after one of the list: %v", s)
		case s.Body != "b" && s.Body != "static":
			t.Errorf("an answer of neither: %v", s)
		}
	}
	if sent[0].Body != "b" || listed.IsZero() {
		t.Errorf("the first answer is of %q, and the list answered at %v; want first b and then static", sent[0].Body, listed)
	}
	if first, old := c.Logged(sourceFails), c.Logged(answerTooOld); first != 1 || old != 1 {
		t.Errorf("%d lines of the failure and %d of the answer that is too old, want 1 of each", first, old)
	}
	n.Set(name, of.second)
	testkit.Settles(t, "it answers again", client, c.URL(), map[string]int{"b": 6})
}

// Retries over a name server that fails go to upstreams of its last answer, and do not ask
// it each time.
func TestStale_RetriesDoNotAskANameServerThatFails(t *testing.T) {
	n, name := testkit.StartNameServer(t), testkit.NewName()
	of := startService(t, "srv", n, name)
	n.Set(name, of.both)
	c := testkit.StartCaddy(t, fmt.Sprintf("http:// {\nreverse_proxy {\ndynamic %s\nlb_policy alive {\n%s\nobserve off\nretries 2\n}\n%s\n}\n}", of.source, testkit.SingleCheck, of.transport))
	client := c.Client()
	testkit.Settles(t, "all is well", client, c.URL(), map[string]int{"a": 3, "b": 3})
	n.Set(name, testkit.Records{RCode: dnsmessage.RCodeServerFailure})
	testkit.Eventually(t, testkit.Patience, "the failure is logged", func() bool {
		return testkit.Ask(client, c.URL()).Status == http.StatusOK && c.Logged(sourceFails) == 1
	})
	of.all[0].Set(testkit.Refusing)
	before, began := n.Queries(name), time.Now()
	testkit.Shares(t, "each second request is retried", testkit.Tally(client, c.URL(), 100), map[string]int{"b": 100})
	// one look-up asks twice, and there is one a second at most
	if asked, most := n.Queries(name)-before, 4+2*int(time.Since(began)/time.Second)*2; asked > most {
		t.Errorf("the name server was asked %d times in %s, want %d times at most", asked, time.Since(began), most)
	}
}
