// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"net/http"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// pickBySelect has the policy of select pick among those of t that can take the request
// and were not tried by it. It may want none of them.
func (d *decision) pickBySelect(t *tier) *reverseproxy.Upstream {
	candidates := make(reverseproxy.UpstreamPool, 0, len(t.weights))
	for i, weight := range t.weights {
		if u := d.Upstreams[i]; weight > 0 && d.takes(t, u) {
			candidates = append(candidates, u)
		}
	}
	if len(candidates) == 0 {
		return nil
	}
	writer := d.Writer
	if writer == nil {
		writer = discard{} // under header and query there is none, and cookie wants one
	}
	return d.pool.handler.Rules.Select.Select(candidates, d.Request, writer)
}

// discard is a response that is not sent.
type discard struct{}

// Header returns fields that are not kept.
func (discard) Header() http.Header { return make(http.Header) }

// Write takes p and drops it.
func (discard) Write(p []byte) (int, error) { return len(p), nil }

// WriteHeader does nothing.
func (discard) WriteHeader(int) {}
