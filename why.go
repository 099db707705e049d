// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"fmt"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/view"
)

// weight is the weight with which the upstream at a position gets requests.
func (here situation) weight(i int, u *reverseproxy.Upstream) float64 {
	t := here.gets
	if t == nil || t.weights[i] == 0 || u.Host != nil && !t.serves(u) {
		return 0
	}
	return float64(t.weights[i]) / float64(max(1, t.scale))
}

// why says in one sentence why an upstream gets requests, or none.
func (s *Selection) why(e view.Upstream, u *reverseproxy.Upstream, m *member, set *settings.Setting, here situation, healthy bool) string {
	since := func() string { return set.Changed.Format(time.RFC3339) }
	up := e.Status == "up"
	switch {
	case set.ModeNow() == settings.Maintenance:
		return "in maintenance since " + since() + ": no requests and no probes"
	case e.Weight == 0:
		return "its weight is 0: no requests"
	case set.ModeNow() == settings.Drain:
		return whyDraining(&e, "draining since "+since(), here, healthy)
	case up && m.draining():
		return whyDraining(&e, "asks for no new requests", here, healthy)
	case !up:
		return trouble(&e) + s.although(e, here)
	case here.broken:
		return "up, but the circuit breaker is open: no requests"
	case !healthy:
		text := "up, but Caddy's own health checks hold it unhealthy"
		if e.EffectiveWeight > 0 {
			return text + s.although(e, here)
		}
		return text + ": no requests"
	case e.EffectiveWeight == 0 && e.Backup:
		return "up, and a backup: gets requests when no primary can serve"
	case e.EffectiveWeight == 0:
		return "up, but others come first"
	case u.Host != nil && u.Full():
		return fmt.Sprintf("up, but has as many requests as it may have at once: %d", u.MaxRequests)
	}
	how := "gets requests in turn"
	if s.inner != nil {
		how = "gets the requests for which " + s.selects + " picks it"
	}
	switch {
	case e.EffectiveWeight < float64(e.Weight):
		return fmt.Sprintf("up, in its slow start: gets requests by %.0f %% of its weight", 100*e.EffectiveWeight/float64(e.Weight))
	case len(m.watches) > 0:
		return "up: " + how
	case strings.Contains(m.address, "{"):
		return "not checked, since its address depends on the request: " + how
	default:
		return "not checked, since no check can reach its address: " + how
	}
}

// whyDraining continues a sentence about one that is draining.
func whyDraining(e *view.Upstream, text string, here situation, healthy bool) string {
	switch {
	case e.Status != "up":
		return text + ", and " + trouble(e) + ": no requests"
	case here.broken:
		return text + ", and the circuit breaker is open: no requests"
	case !healthy:
		return text + ", and Caddy's own health checks hold it unhealthy: no requests"
	case e.EffectiveWeight > 0:
		return text + ", but gets requests, since no other upstream serves"
	default:
		return text + ": no new requests while another upstream can take them"
	}
}

// trouble says which check it does not pass, and why.
func trouble(e *view.Upstream) string {
	for _, c := range e.Checks {
		switch {
		case c.Status != e.Status:
		case e.Status != "down":
			return fmt.Sprintf("check '%s' has no verdict yet", c.Check)
		case c.LastFailed != nil:
			return fmt.Sprintf("check '%s' failed: %s", c.Check, c.LastFailed.Reason)
		default:
			return fmt.Sprintf("check '%s' failed before its options changed", c.Check)
		}
	}
	return "it has no verdict yet"
}

// although ends a sentence about one that does not serve, but may get requests.
func (s *Selection) although(e view.Upstream, here situation) string {
	switch {
	case here.broken:
		return "; and the circuit breaker is open: no requests"
	case e.EffectiveWeight == 0:
		return ""
	case here.mood == failedOpen:
		return fmt.Sprintf("; gets requests all the same, since fewer than fail_open wants serve (%s)", s.FailOpen)
	case here.mood == lastResort:
		return "; gets requests all the same, as the last resort: no upstream serves"
	case s.hold > 0:
		return fmt.Sprintf("; requests wait for one, %s at most, and then go to it all the same", s.hold)
	default:
		return "; gets requests all the same: no upstream serves yet"
	}
}
