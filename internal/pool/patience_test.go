// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// answer is a pool as for an answer of a dynamic source, whose targets get a verdict when
// a test says so.
type answer struct {
	*Pool
	upstreams reverseproxy.UpstreamPool
	targets   []*health.Target
}

func newAnswer(tb testing.TB, rules Rules, dials ...string) *answer {
	tb.Helper()
	h := &Handler{Rules: rules, Logger: zap.NewNop()}
	h.SetRunning(true)
	a := new(answer)
	var members []*Member
	for _, dial := range dials {
		target := testkit.NewTarget()
		tb.Cleanup(target.Subscribe(h.Changed))
		a.targets = append(a.targets, target)
		a.upstreams = append(a.upstreams, &reverseproxy.Upstream{Host: new(reverseproxy.Host), Dial: dial})
		members = append(members, &Member{Address: dial, Weight: 1, Checks: []Check{{Label: "test", Target: target}}})
	}
	a.Pool = New(h, members, a.upstreams, new(LoggedState))
	return a
}

// verdict makes a target pass or fail, and returns when all subscribers know.
func (a *answer) verdict(i int, passes bool) { testkit.Decide(a.targets[i], passes) }

func (a *answer) pick() *reverseproxy.Upstream {
	return a.Pick(Attempt{Upstreams: a.upstreams, Request: testkit.Get()}).Upstream
}

// A request that is held sees a verdict also when it comes while another request makes a
// snapshot of the pool.
func TestHold_LosesNoVerdict(t *testing.T) {
	for which := range 2 {
		synctest.Test(t, func(t *testing.T) {
			a := newAnswer(t, Rules{Hold: 2 * time.Second}, "a:80", "b:80")
			began := time.Now()
			answered := make(chan time.Duration)
			for range 20 {
				go func() {
					a.pick()
					answered <- time.Since(began)
				}()
			}
			synctest.Wait()
			if which == 1 {
				a.verdict(0, true)
				synctest.Wait()
			}
			a.making.Lock() // as a request does that makes a snapshot
			a.verdict(which, true)
			for range 1000 { // those that wait read the snapshot meanwhile
				runtime.Gosched()
			}
			a.making.Unlock()
			for range 20 {
				// the other one has no verdict, which is waited for a moment
				if took, want := <-answered, []time.Duration{holdGrace, 0}[which]; took != want {
					t.Errorf("verdict %d: answered after %s, want %s", which+1, took, want)
				}
			}
		})
	}
}

// A pick that begins after a verdict goes by it, and not by a snapshot that another
// request began before; where that one has no upstream, it waits for the new one.
func TestPick_NoUpstreamIsNeverOutdated(t *testing.T) {
	a := newAnswer(t, Rules{FailOpen: FailOpen{Never: true}}, "a:80")
	a.verdict(0, false)
	if u := a.pick(); u != nil {
		t.Fatalf("%s serves, want none", u.Dial)
	}
	a.making.Lock() // as a request does that makes a snapshot
	a.verdict(0, true)
	picked := make(chan *reverseproxy.Upstream)
	go func() { picked <- a.pick() }()
	select {
	case u := <-picked:
		t.Errorf("got %v before the new snapshot was made", u)
		a.making.Unlock()
	case <-time.After(50 * time.Millisecond):
		a.making.Unlock()
		if u := <-picked; u == nil {
			t.Error("nil while one serves")
		}
	}
}
