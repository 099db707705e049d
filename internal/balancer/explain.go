// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/pool"
	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/view"
)

// explanation is why an upstream gets requests, or none.
type explanation struct {
	row       *view.Upstream    // with everything except the sentence
	set       *settings.Setting // of the upstream, nil if nothing is set
	balancer  *Balancer
	member    *pool.Member
	upstream  *reverseproxy.Upstream
	situation pool.Situation
	groups    groups
	healthy   bool // by Caddy's own health checks
}

// groups are those of a pool.
type groups struct {
	number      int // how many there are
	first, last int // the first and the last of those that get requests, both 0 if none does
}

// groupsOf returns the groups of members that get requests with these weights, by position.
func groupsOf(members []*pool.Member, weights []float64) groups {
	g := groups{number: 1, first: -1}
	for i, m := range members {
		g.number = max(g.number, m.Group+1)
		if weights[i] == 0 {
			continue
		}
		g.last = max(g.last, m.Group)
		if g.first < 0 || m.Group < g.first {
			g.first = m.Group
		}
	}
	g.first = max(0, g.first)
	return g
}

// serves reports whether the upstream gets requests because it is alive, or would get them
// if it were not suspect.
func (e explanation) serves() bool {
	row := e.row
	switch {
	case row.Mode != settings.Ready, row.Status != "up", row.EjectedUntil != nil, e.member.Draining(), !e.healthy:
		return false
	case row.EffectiveWeight > 0:
		return true
	default:
		return row.Suspect && row.Weight > 0 && row.Group <= e.groups.last && !e.situation.BreakerOpen
	}
}

// sentence returns the one sentence that is true of what happens.
func (e explanation) sentence() string {
	row := e.row
	since := func() string { return e.set.Changed.Format(time.RFC3339) }
	up := row.Status == "up"
	switch {
	case row.Mode == settings.Maintenance:
		return "in maintenance since " + since() + ": no requests and no probes"
	case row.Weight == 0:
		return "its weight is 0: no requests"
	case row.Mode == settings.Drain && row.Rebind && e.balancer.config.Rules.KeepsClients():
		return e.draining("draining since " + since() + ", and its bound clients move")
	case row.Mode == settings.Drain:
		return e.draining("draining since " + since())
	case up && e.member.Draining():
		return e.draining("asks for no new requests")
	case !up:
		return e.trouble() + e.although()
	case e.situation.BreakerOpen:
		return "up, but the circuit breaker is open: no requests"
	case !e.healthy:
		text := "up, but Caddy's own health checks consider it unhealthy"
		if row.EffectiveWeight > 0 {
			return text + e.although()
		}
		return text + ": no requests"
	case row.EjectedUntil != nil:
		return e.ejected()
	case row.Suspect:
		return e.suspect()
	case row.EffectiveWeight == 0 && row.Backup:
		return e.standby()
	case row.EffectiveWeight == 0:
		return "up, but others come first"
	case e.isFull():
		return e.full()
	}
	how := "gets requests in turn"
	if r := e.balancer.config.Rules; r.Select != nil {
		how = "gets the requests for which " + r.SelectName + " picks it"
	}
	is := "up: "
	if row.Group > e.groups.first {
		is = "up, and " + e.backup() + ": "
	}
	how += e.joined()
	switch {
	case row.EffectiveWeight < float64(row.Weight):
		return fmt.Sprintf("up, in its slow start: gets requests with %.0f %% of its weight%s", 100*row.EffectiveWeight/float64(row.Weight), e.joined())
	case len(e.member.Checks) > 0:
		return is + how
	case strings.Contains(e.member.Address, "{"):
		return "not checked, since its address depends on the request, so neither suspect nor ejected: " + how
	default:
		return "not checked, since no check can reach its address, so never suspect: " + how
	}
}

// isFull reports whether the upstream has as many requests as it may, by its own limit or
// by that of Caddy.
func (e explanation) isFull() bool {
	return e.row.Limit > 0 && e.member.Slots.InUse() >= e.row.Limit || e.upstream.Host != nil && e.upstream.Full()
}

// full says what the limit of a full upstream is, and what becomes of further requests.
func (e explanation) full() string {
	limit := e.row.Limit
	if core := e.upstream.MaxRequests; limit == 0 || core > 0 && core < limit {
		limit = core
	}
	text := fmt.Sprintf("up, but full: its limit is %s at once", plural(limit, "request"))
	if limit == e.row.Limit && limit < e.member.Limit {
		text += " in its slow start"
	}
	if e.balancer.config.Rules.Queue.Length > 0 {
		text += "; requests wait while no other upstream has room"
	}
	return text
}

// plural returns a number and the word for so many.
func plural(n int, word string) string {
	if n == 1 {
		return "1 " + word
	}
	return fmt.Sprintf("%d %ss", n, word)
}

// backup names the group of a backup, by its number if there are several.
func (e explanation) backup() string {
	if e.groups.number <= 2 {
		return "a backup"
	}
	return fmt.Sprintf("a backup of group %d", e.row.Group)
}

// standby says when a backup that gets no requests would get some.
func (e explanation) standby() string {
	spill := e.balancer.config.Rules.Spill
	text := "up, and " + e.backup() + ": gets requests when "
	if e.row.Group == 1 {
		text += "no primary can serve"
	} else {
		text += "no upstream of the groups before it can serve"
	}
	switch {
	case spill == 0:
	case e.row.Group == 1:
		text += fmt.Sprintf(", or while less than %g %% of their weight serves", spill)
	default:
		text += fmt.Sprintf(", or while less than %g %% of the weight of the primaries serves in these", spill)
	}
	return text + e.stay()
}

// stay ends a sentence about an upstream to which clients can be bound that go on with it,
// although it gets no other requests.
func (e explanation) stay() string {
	if e.balancer.config.Rules.Sticky == nil {
		return ""
	}
	return "; clients that are bound to it stay"
}

// joined says why a backup gets requests beside the groups before it, and until when. They
// can serve with more than the percentage already: it leaves with some distance. It is empty
// for all others.
func (e explanation) joined() string {
	if e.row.Group <= e.groups.first {
		return ""
	}
	rules := &e.balancer.config.Rules
	where := ""
	if e.row.Group > 1 {
		where = " in the groups before it"
	}
	return fmt.Sprintf(", since less than %g %% of the weight of the primaries served%s, until %g %% does", rules.Spill, where, rules.SpillEnds())
}

// suspect says what made the upstream suspect, and when it gets requests.
func (e explanation) suspect() string {
	text := "up, but suspect since "
	if reason := e.suspicion(); reason != "" {
		text += "a request to it failed (" + reason + ")"
	} else {
		text += "a request of another pool could not connect to it"
	}
	switch {
	case e.situation.State.IgnoresHealth():
		return text + e.although()
	case e.row.EffectiveWeight > 0:
		return text + ": gets requests, since all that serve are suspect"
	case e.isUnreachable(): // so bound clients go elsewhere, too
		return text + ": gets requests only while no other upstream serves"
	default:
		return text + ": gets requests only while no other upstream serves" + e.stay()
	}
}

// isUnreachable reports whether a request could not connect to the upstream, and its checks
// have yet to decide.
func (e explanation) isUnreachable() bool {
	return slices.ContainsFunc(e.member.Checks, func(c pool.Check) bool { return c.Target.IsSuspect() })
}

// keepsClients reports whether clients that are bound to the upstream, which is up and drains,
// go on with it.
func (e explanation) keepsClients() bool {
	rules := &e.balancer.config.Rules
	leaves := e.row.Rebind || e.row.EjectedUntil != nil || rules.Sticky != nil && e.row.Suspect && e.isUnreachable()
	return rules.KeepsClients() && !leaves
}

// suspicion is what made the upstream suspect in this pool, empty if it was another.
func (e explanation) suspicion() string {
	if w := e.member.Witness; w != nil {
		return w.Suspicion()
	}
	return ""
}

// ejected says why the upstream is ejected, until when, and whether it gets requests.
func (e explanation) ejected() string {
	until, reason := *e.row.EjectedUntil, e.member.Witness.EjectionReason()
	if reason == "" {
		reason = "its requests failed" // it has ended just now
	}
	text := "up, but ejected until " + until.Format(time.RFC3339) + ": " + reason
	if !until.After(time.Now()) {
		text = "up, its ejection is over: the next request to it is a trial. Before that, " + reason
	}
	switch {
	case e.situation.State.IgnoresHealth():
		return text + e.although()
	case e.row.EffectiveWeight > 0:
		return text + "; gets requests, since no upstream serves"
	default:
		return text
	}
}

// draining continues a sentence about an upstream that drains.
func (e explanation) draining(text string) string {
	switch {
	case e.row.Status != "up":
		return text + ", and " + e.trouble() + ": no requests"
	case e.situation.BreakerOpen:
		return text + ", and the circuit breaker is open: no requests"
	case !e.healthy:
		return text + ", and Caddy's own health checks consider it unhealthy: no requests"
	case e.row.EffectiveWeight > 0:
		return text + ", but gets requests, since no other upstream serves"
	case e.keepsClients():
		return text + ": no new clients while another upstream can take them; clients that are bound to it stay"
	default:
		return text + ": no new requests while another upstream can take them"
	}
}

// trouble says which check the upstream does not pass, and why.
func (e explanation) trouble() string {
	for _, c := range e.row.Checks {
		switch {
		case c.Status != e.row.Status:
		case e.row.Status != "down":
			return fmt.Sprintf("check '%s' has no verdict yet", c.Check)
		case c.LastFailed != nil:
			return fmt.Sprintf("check '%s' failed: %s", c.Check, c.LastFailed.Reason)
		default:
			return fmt.Sprintf("check '%s' failed before its options changed", c.Check)
		}
	}
	return "it has no verdict yet"
}

// although ends a sentence about an upstream that does not serve, but may get requests.
func (e explanation) although() string {
	rules := e.balancer.config.Rules
	switch {
	case e.situation.BreakerOpen:
		return "; and the circuit breaker is open: no requests"
	case e.row.EffectiveWeight == 0:
		return ""
	case e.situation.State == pool.FailedOpen:
		return fmt.Sprintf("; gets requests anyway: fewer upstreams serve than fail_open (%s) requires", rules.FailOpen.Text)
	case e.situation.State == pool.LastResort:
		return "; gets requests anyway, as the last resort: no upstream serves"
	case rules.Hold > 0:
		return fmt.Sprintf("; requests wait up to %s for an upstream, and then go to this one anyway", rules.Hold)
	default:
		return "; gets requests anyway: no upstream serves yet"
	}
}
