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
// that drain go there.
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
		i := none
		if !t.fallback && !t.anyHealth {
			i = pickDraining(d, t, candidates)
		}
		if i == none {
			i = askSelect(d, candidates, d.Writer)
		}
		if i == none || d.claim(i) {
			return i
		}
	}
}

// pickDraining returns the upstream that drains to which the policy of select has bound the
// client. If it has bound it to a candidate, or binds it to one now, that is returned. It
// returns none if the policy is to be asked without those that drain.
func pickDraining(d *decision, t *tier, candidates []int) int {
	var draining []int
	for _, i := range d.now.draining {
		if d.takes(t, i) {
			draining = append(draining, i)
		}
	}
	if len(draining) == 0 {
		return none
	}
	scratch := discard{header: make(http.Header)}
	i := askSelect(d, slices.Concat(candidates, draining), scratch)
	binds := scratch.header.Get("Set-Cookie") != ""
	switch {
	case i == none, binds && slices.Contains(draining, i):
		return none
	case binds && d.Writer != nil:
		for _, cookie := range scratch.header["Set-Cookie"] {
			d.Writer.Header().Add("Set-Cookie", cookie)
		}
	}
	return i
}

// askSelect returns the one of some upstreams that the policy of select picks.
func askSelect(d *decision, positions []int, w http.ResponseWriter) int {
	candidates := make(reverseproxy.UpstreamPool, 0, len(positions))
	for _, i := range positions {
		candidates = append(candidates, d.Upstreams[i])
	}
	if w == nil {
		w = discard{header: make(http.Header)} // under header and query there is none, and cookie wants one
	}
	picked := d.pool.handler.Rules.Select.Select(candidates, d.Request, w)
	for n, i := range positions {
		if picked == candidates[n] {
			return i
		}
	}
	return none
}

// discard is a response that is not sent.
type discard struct{ header http.Header }

// Header returns its fields.
func (d discard) Header() http.Header { return d.header }

// Write takes p and drops it.
func (discard) Write(p []byte) (int, error) { return len(p), nil }

// WriteHeader does nothing.
func (discard) WriteHeader(int) {}
