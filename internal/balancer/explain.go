// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"fmt"
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
	healthy   bool // by Caddy's own health checks
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
		return row.Suspect && row.Weight > 0 && !row.Backup && !e.situation.BreakerOpen
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
		return "up, and a backup: gets requests when no primary can serve"
	case row.EffectiveWeight == 0:
		return "up, but others come first"
	case e.upstream.Host != nil && e.upstream.Full():
		return fmt.Sprintf("up, but full: its limit is %d requests at once", e.upstream.MaxRequests)
	}
	how := "gets requests in turn"
	if r := e.balancer.config.Rules; r.Select != nil {
		how = "gets the requests for which " + r.SelectName + " picks it"
	}
	switch {
	case row.EffectiveWeight < float64(row.Weight):
		return fmt.Sprintf("up, in its slow start: gets requests with %.0f %% of its weight", 100*row.EffectiveWeight/float64(row.Weight))
	case len(e.member.Checks) > 0:
		return "up: " + how
	case strings.Contains(e.member.Address, "{"):
		return "not checked, since its address depends on the request, so neither suspect nor ejected: " + how
	default:
		return "not checked, since no check can reach its address, so never suspect: " + how
	}
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
	default:
		return text + ": gets requests only while no other upstream serves"
	}
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
