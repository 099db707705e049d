// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"net/http"
	"slices"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/health"
)

// attempts is what one request remembers from one try to the next. It is only
// kept where the proxy retries; all methods can be called on nil, and then
// nothing was tried.
type attempts struct {
	// request tells apart the requests that share their variables: those of a
	// handle_errors route are those of the request that failed.
	request *http.Request
	// tried has the addresses, the last one at the end: upstreams of dynamic
	// sources are new values for every try.
	tried []string
	held  bool
	// pending is the address of the last answer, empty if there was none: to be
	// asked again means that it failed.
	pending string
}

// attempts returns what r remembers, nil if the proxy does not retry.
func (s *Selection) attempts(r *http.Request) *attempts {
	if !s.retries {
		return nil
	}
	if a, ok := caddyhttp.GetVar(r.Context(), s.variable).(*attempts); ok && a.request == r {
		s.suspect(a.pending)
		a.pending = ""
		return a
	}
	a := &attempts{request: r}
	caddyhttp.SetVar(r.Context(), s.variable, a)
	return a
}

func (a *attempts) add(u *reverseproxy.Upstream) {
	if a != nil {
		a.tried = append(a.tried, u.Dial)
		a.pending = u.Dial
	}
}

// suspect has the upstream at an address probed in a burst: a request to it has
// just failed.
func (s *Selection) suspect(dial string) {
	m := s.byDial[dial]
	if m == nil && dial != "" && s.dynamic != nil {
		m = s.dynamic.memberAt(dial)
	}
	if m != nil {
		for _, w := range m.watches {
			w.Target.Suspect()
		}
	}
}

func (a *attempts) has(u *reverseproxy.Upstream) bool {
	return a != nil && slices.Contains(a.tried, u.Dial)
}

func (a *attempts) isLast(u *reverseproxy.Upstream) bool {
	return a != nil && len(a.tried) > 0 && a.tried[len(a.tried)-1] == u.Dial
}

// any reports whether the request has tried any upstream.
func (a *attempts) any() bool { return a != nil && len(a.tried) > 0 }

// startOver forgets what was tried, which was all there is.
func (a *attempts) startOver() { a.tried = a.tried[:0] }

// mayHold reports whether the request may be held, which it is only once.
func (a *attempts) mayHold() bool {
	if a == nil {
		return true
	}
	first := !a.held
	a.held = true
	return first
}

// leastRecentlyFailed returns the upstream whose checks failed the longest ago, of
// those that the request did not try. It is for a request that has tried all that
// serve: that they failed is newer than the verdict of the others. It returns nil where
// health is never ignored, or if all were tried or are full.
func (d *decision) leastRecentlyFailed(now *snapshot) (least *reverseproxy.Upstream) {
	if d.rules.failOpen.never || d.circuitOpen() {
		return nil
	}
	var when time.Time
	for i, weight := range now.ready {
		u := d.pool[i]
		if weight == 0 || u.Full() || d.tried.has(u) {
			continue
		}
		if failed := now.members[i].lastFailed(); least == nil || failed.Before(when) {
			least, when = u, failed
		}
	}
	return least
}

// maxProbedDown is how many upstreams that are down are probed at once for a request
// that has tried all that serve. More requests have others probed: those whose checks
// failed the longest ago come first.
const maxProbedDown = 32

// probeDown has upstreams that are down probed at once, since the last one that serves
// has failed a request.
func (d *decision) probeDown(now *snapshot) {
	type candidate struct {
		*member
		failed time.Time
	}
	var down []candidate
	for i, weight := range now.ready {
		if m := now.members[i]; weight > 0 && m.status() == health.Down && !d.tried.has(d.pool[i]) {
			down = append(down, candidate{m, m.lastFailed()})
		}
	}
	slices.SortFunc(down, func(a, b candidate) int { return a.failed.Compare(b.failed) })
	for _, m := range down[:min(len(down), maxProbedDown)] {
		for _, w := range m.watches {
			if w.Target.Status() == health.Down {
				w.Target.ProbeNow()
			}
		}
	}
}

// lastFailed is when the last probe that failed began, of all checks; the zero time if
// none did.
func (m *member) lastFailed() (last time.Time) {
	for _, w := range m.watches {
		if failed := w.Target.LastFailed(); failed.After(last) {
			last = failed
		}
	}
	return last
}
