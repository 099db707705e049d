// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"net/http"
	"slices"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// KeepsClients reports whether clients can be bound to upstreams, so that they go on with one
// that drains.
func (r *Rules) KeepsClients() bool { return r.Sticky != nil || r.bindsBySelect() }

// bindsBySelect reports whether the policy of select binds clients to upstreams.
func (r *Rules) bindsBySelect() bool { return r.Select != nil && r.SelectName == "cookie" }

// pickBySelect has the policy of select pick among those of t that can take the request
// and were not tried by it. It may want none of them. Clients that are bound to upstreams
// that drain go there. What the policy adds to the answer counts only if the request gets a
// slot there.
func pickBySelect(d *decision, t *tier) int {
	for {
		var candidates []int
		for i, weight := range t.weights {
			if weight > 0 && d.takes(t, i) {
				candidates = append(candidates, i)
			}
		}
		if len(candidates) == 0 {
			return none
		}
		var added scratch
		i := none
		if !t.fallback && !t.anyHealth {
			i, added = pickDraining(d, t, candidates)
		}
		if i == none {
			i, added = askSelect(d, candidates)
		}
		if i != none && !d.claim(i) {
			continue
		}
		added.copyTo(d.Writer)
		return i
	}
}

// pickDraining returns the upstream that drains to which the policy of select has bound the
// client. If it has bound it to a candidate, or binds it to one now, that is returned. It
// returns none if the policy is to be asked without those that drain.
func pickDraining(d *decision, t *tier, candidates []int) (int, scratch) {
	var draining []int
	for _, i := range d.now.draining {
		if d.takes(t, i) {
			draining = append(draining, i)
		}
	}
	if len(draining) == 0 {
		return none, scratch{}
	}
	i, added := askSelect(d, slices.Concat(candidates, draining))
	if added.header.Get("Set-Cookie") != "" && slices.Contains(draining, i) {
		return none, scratch{}
	}
	return i, added
}

// askSelect returns the one of some upstreams that the policy of select picks, and what it
// adds to the answer.
func askSelect(d *decision, positions []int) (int, scratch) {
	candidates := make(reverseproxy.UpstreamPool, 0, len(positions))
	for _, i := range positions {
		candidates = append(candidates, d.Upstreams[i])
	}
	var added scratch
	picked := d.pool.handler.Rules.Select.Select(candidates, d.Request, &added)
	for n, i := range positions {
		if picked == candidates[n] {
			return i, added
		}
	}
	return none, scratch{}
}

// scratch is a response that is not sent.
type scratch struct{ header http.Header }

// copyTo adds its fields to a response, which is nil under header and query.
func (s *scratch) copyTo(w http.ResponseWriter) {
	for name, values := range s.header {
		for _, value := range values {
			if w != nil {
				w.Header().Add(name, value)
			}
		}
	}
}

// Header returns its fields.
func (s *scratch) Header() http.Header {
	if s.header == nil {
		s.header = make(http.Header)
	}
	return s.header
}

// Write takes p and drops it.
func (*scratch) Write(p []byte) (int, error) { return len(p), nil }

// WriteHeader does nothing.
func (*scratch) WriteHeader(int) {}
