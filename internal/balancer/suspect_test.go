// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/monitor"
	"github.com/caddy-alive/caddy-alive/internal/pool"
	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/upstreamname"
	"github.com/caddy-alive/caddy-alive/internal/view"
	"github.com/caddy-alive/caddy-alive/internal/witness"
)

// accusedPool is a balancer over upstreams of a network, whose requests can fail.
type accusedPool struct {
	*testing.T
	*Balancer
	logs *observer.ObservedLogs
}

// newAccusedPool starts a balancer, and waits until its upstreams have a verdict.
func newAccusedPool(t *testing.T, name string, n *network, configure func(*Config), dials ...string) *accusedPool {
	t.Helper()
	core, logs := observer.New(zap.InfoLevel)
	ended := make(chan struct{})
	c := Config{
		Name: name, Rules: pool.Rules{Witness: witness.DefaultSettings()}, Checks: []*monitor.Check{n.check()},
		Proxy: &reverseproxy.Handler{Upstreams: brought(dials...)}, Transport: defaultTransport, Logger: zap.New(core), Ended: ended,
	}
	if configure != nil {
		configure(&c)
	}
	p := &accusedPool{T: t, Balancer: new(Balancer), logs: logs}
	t.Cleanup(func() {
		close(ended)
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := p.Init(newRegistry(t, settings.NewSet()), c); err != nil {
		t.Fatal(err)
	}
	startAll([]*Balancer{p.Balancer})
	time.Sleep(30 * time.Second) // after a reload, no request of an earlier time counts
	synctest.Wait()
	return p
}

// fail has n requests to an upstream fail, one after the other.
func (p *accusedPool) fail(address string, n int, cause witness.Cause, reason string) {
	for range n {
		var trip witness.Trip
		trip.Begin(p.Member(address).Witness)
		trip.Fail(witness.Failure{Cause: cause, Reason: reason})
	}
}

// succeed has a request to an upstream end well.
func (p *accusedPool) succeed(address string) {
	p.Member(address).Witness.ClaimTrial(true)
	var trip witness.Trip
	trip.Begin(p.Member(address).Witness)
	trip.Good()
}

// want compares the rows with one line for each: state, whether it serves, and why.
func (p *accusedPool) want(what string, want ...string) {
	p.Helper()
	var got []string
	for _, row := range (lister{p.Balancer, Filter{}}).rows() {
		got = append(got, fmt.Sprintf("%s, serves %v: %s", row.State(), row.Serving, row.Why))
	}
	if !slices.Equal(got, want) {
		p.Errorf("%s: shown as\n%s\nwant\n%s", what, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// A suspect serves, but says that the others come first. When all are suspect, they get
// requests. Checks that pass end this.
func TestExplain_Suspect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork("a:80", "b:80", "c:80")
		p := newAccusedPool(t, "shop", n, func(c *Config) { c.Groups = upstreamname.NumbersOf(map[string]int{"c:80": 1}) }, "a:80", "b:80", "c:80")
		other := newAccusedPool(t, "other", n, nil, "a:80", "b:80")
		deaf := newAccusedPool(t, "deaf", n, func(c *Config) { c.Rules.Witness.Off = true }, "a:80")
		const up = "up, serves true: up: gets requests in turn"
		p.want("at first", up, up, "up, serves false: up, and a backup: gets requests when no primary can serve")
		p.fail("a:80", 1, witness.Connect, "connection refused")
		const suspect = "suspect, serves true: up, but suspect since a request to it failed (connection refused): gets requests only while no other upstream serves"
		p.want("one is accused", suspect, up, "up, serves false: up, and a backup: gets requests when no primary can serve")
		other.want("by another pool", "suspect, serves true: up, but suspect since a request of another pool could not connect to it: gets requests only while no other upstream serves", up)
		deaf.want("observe off", up)
		p.fail("c:80", 1, witness.Outcome, "status 502")
		p.fail("b:80", 1, witness.Outcome, "status 502")
		const all = "suspect, serves true: up, but suspect since a request to it failed (%s): gets requests, since all that serve are suspect"
		p.want("all are accused", fmt.Sprintf(all, "connection refused"), fmt.Sprintf(all, "status 502"),
			"suspect, serves false: up, but suspect since a request to it failed (status 502): gets requests only while no other upstream serves")
		if rows := (lister{p.Balancer, Filter{}}).rows(); view.Pools(rows)[0].Alarm() != "" || view.NewTotals(rows, view.Pools(rows)).Summary() != "3 suspect; 2 of 3 upstreams serve" {
			t.Errorf("alarm %q, summary %q", view.Pools(rows)[0].Alarm(), view.NewTotals(rows, view.Pools(rows)).Summary())
		}
		time.Sleep(time.Second)
		synctest.Wait()
		p.want("the checks pass", up, up, "up, serves false: up, and a backup: gets requests when no primary can serve")
		other.want("of the other pool, too", up, up)
		if err := p.Close(); err != nil { // which reports what a minute would
			t.Error(err)
		}
		last := p.logs.All()[p.logs.Len()-1]
		if want := "upstreams were suspect: 3 suspicions in the last 1s: 2 outcome, 1 connect"; last.Message != want {
			t.Errorf("the last line is %q, want %q", last.Message, want)
		}
	})
}

// An ejected upstream does not serve. The reason, the time, and the trial that follows are
// shown, as are requests that it gets because no other serves.
func TestExplain_Ejected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork("a:80", "b:80")
		p := newAccusedPool(t, "shop", n, nil, "a:80", "b:80")
		const up = "up, serves true: up: gets requests in turn"
		eject := func(address string) time.Time {
			for range 5 {
				p.fail(address, 1, witness.Outcome, "status 502")
				time.Sleep(5 * time.Second)
				synctest.Wait()
			}
			row := (lister{p.Balancer, Filter{}}).row(nil, p.Member(address), nil)
			if row.EjectedUntil == nil {
				t.Fatalf("%s is not ejected: %+v", address, row)
			}
			return *row.EjectedUntil
		}
		until := eject("a:80")
		const reason = "5 requests in a row failed while its checks pass, the last one: status 502"
		ejected := "ejected, serves false: up, but ejected until " + until.Format(time.RFC3339) + ": " + reason
		p.want("one is ejected", ejected, up)
		p.registry.Settings.Change("b:80", settings.Change{Mode: new(settings.Mode(settings.Maintenance))})
		rows := (lister{p.Balancer, Filter{}}).rows()
		if got, want := rows[0].Why, strings.TrimPrefix(ejected, "ejected, serves false: ")+"; gets requests, since no upstream serves"; got != want || rows[0].EffectiveWeight != 1 {
			t.Errorf("the last one is ejected: %q, want %q", got, want)
		}
		if got, want := view.Pools(rows)[0].Alarm(), "No upstream serves: requests go to upstreams that drain, are ejected, or have no verdict yet."; got != want {
			t.Errorf("alarm %q, want %q", got, want)
		}
		p.registry.Settings.Change("b:80", settings.Change{Mode: new(settings.Mode(settings.Ready))})
		time.Sleep(time.Until(until))
		synctest.Wait()
		p.want("it is over", "ejected, serves false: up, its ejection is over: the next request to it is a trial. Before that, "+reason, up)
		p.succeed("a:80")
		p.want("the trial went well", up, up)

		time.Sleep(time.Minute) // the suspicions are reported once a minute
		synctest.Wait()
		counted, events := 0, 0
		for e, ok := p.registry.Events.Next(); ok; e, ok = p.registry.Events.Next() {
			if e.Name == "ejected" && e.Data["upstream"] == "a:80" && e.Data["reason"] == reason && e.Data["in_a_row"] == 1 {
				events++
			}
		}
		for _, line := range []string{"upstreams were suspect: ", "upstream is ejected: ", "upstream is no longer ejected: "} {
			for _, entry := range p.logs.All() {
				if strings.HasPrefix(entry.Message, line) {
					counted++
				}
			}
		}
		if events != 1 || counted != 3 {
			t.Errorf("%d events and %d lines, want 1 and 3: %v", events, counted, p.logs.All())
		}
	})
}

// While a config is being provisioned, the one that serves goes on, and its pool is that of the
// new one too: suspicions may begin and end, and upstreams may be ejected, at each moment.
func TestReload_TrafficAccusesWhileAConfigIsProvisioned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork("a:80", "b:80", "c:80")
		old := newAccusedPool(t, "shop", n, nil, "a:80", "b:80", "c:80")
		accused := false
		accuse := func(zapcore.Entry) error { // the new balancer has begun with a:80 by now
			accused = true
			old.fail("a:80", 1, witness.Connect, "connection refused")
			time.Sleep(time.Second)
			synctest.Wait()
			for range 5 {
				old.fail("b:80", 1, witness.Outcome, "status 502")
				time.Sleep(5 * time.Second)
				synctest.Wait()
			}
			return nil
		}
		p := newAccusedPool(t, "shop", n, func(c *Config) { c.Logger = c.Logger.WithOptions(zap.Hooks(accuse)) }, "a:80", "b:80", "{http.vars.which}", "c:80")
		if !accused {
			t.Fatal("nothing happened meanwhile")
		}
		if row := (lister{p.Balancer, Filter{}}).row(nil, p.Member("b:80"), nil); row.State() != "ejected" {
			t.Errorf("what happened meanwhile is not known: %+v", row)
		}
	})
}
