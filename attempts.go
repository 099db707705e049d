// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"net/http"
	"slices"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
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
			w.target.Suspect()
		}
	}
}

func (a *attempts) has(u *reverseproxy.Upstream) bool {
	return a != nil && slices.Contains(a.tried, u.Dial)
}

func (a *attempts) isLast(u *reverseproxy.Upstream) bool {
	return a != nil && len(a.tried) > 0 && a.tried[len(a.tried)-1] == u.Dial
}

// startOver forgets what was tried, for everybody was.
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
