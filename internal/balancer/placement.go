// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"context"
	"net/http"
	"net/url"

	"github.com/caddy-alive/caddy-alive/internal/observer"
	"github.com/caddy-alive/caddy-alive/internal/pool"
)

// places reports whether anything goes along with requests from their selection to their
// answer.
func (t *traffic) places() bool {
	c := &t.balancer.config
	return c.Rules.Sticky != nil || c.Limit > 0 || c.Limits.Any()
}

// choose picks an upstream, and keeps with the request what goes along with it. A slot that
// an earlier selection of the request has taken is free before.
func (t *traffic) choose(p *pool.Pool, a pool.Attempt) pool.Choice {
	if !t.places() {
		return p.Pick(a)
	}
	before := t.placed(a.Request.Context(), a.Request.URL)
	if before != nil {
		before.Free()
	}
	c := p.Pick(a)
	if c.Slot == nil && !c.Binds && before == nil {
		return c
	}
	placed := &observer.Placement{URL: a.Request.URL}
	if c.Binds {
		cookie := t.balancer.config.Rules.Sticky
		placed.Cookie = cookie.Header(a.Request, cookie.Value(c.Upstream.Dial))
	}
	if c.Slot != nil {
		placed.Hold(a.Request.Context(), c.Slot)
	}
	if kept := placeholdersOf(a.Request.Context()); kept != nil {
		kept.Set(t.placement, placed)
	}
	return c
}

// placed returns what goes along with a request, nil if nothing does.
func (t *traffic) placed(ctx context.Context, tries *url.URL) *observer.Placement {
	if kept := placeholdersOf(ctx); kept != nil {
		value, _ := kept.Get(t.placement)
		if placed, ok := value.(*observer.Placement); ok && placed.URL == tries {
			return placed
		}
	}
	return nil
}

// handles reports whether a route of handle_response takes an answer over, as Caddy decides
// it. It closes the body of the answer only when everything behind it has returned.
func (t *traffic) handles(res *http.Response) bool {
	for _, h := range t.balancer.config.Proxy.HandleResponse {
		if h.Match == nil || h.Match.Match(res.StatusCode, res.Header) {
			return h.StatusCode.String() == ""
		}
	}
	return false
}
