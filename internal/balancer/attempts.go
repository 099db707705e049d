// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"net/http"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-alive/caddy-alive/internal/pool"
)

// tried returns what a request has tried, nil if the handler does not retry. An upstream
// that has just failed the request is probed in a burst.
func (b *Balancer) tried(r *http.Request) *pool.Tried {
	if !b.config.Rules.Retries {
		return nil
	}
	if t, ok := caddyhttp.GetVar(r.Context(), b.variable).(*pool.Tried); ok && t.Request == r {
		if m := b.memberAt(t.Failed()); m != nil {
			m.Suspect()
		}
		return t
	}
	t := &pool.Tried{Request: r}
	caddyhttp.SetVar(r.Context(), b.variable, t)
	return t
}
