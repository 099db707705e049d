// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"net/http"
	"slices"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// Tried is what one request remembers from one selection to the next. It is kept where
// the handler retries only. All methods can be called on nil: nothing was tried then.
type Tried struct {
	// Request tells apart the requests that share their variables: those of a
	// handle_errors route are those of the request that failed.
	Request *http.Request

	// addresses are those tried, the last one at the end: upstreams of dynamic sources
	// are new values for every try.
	addresses []string
	held      bool
	// pending is the address of the last answer, empty if there was none: to be asked
	// again means that it failed.
	pending string
}

// Failed returns the address of the upstream that has failed the request since the last
// call, empty if none has.
func (t *Tried) Failed() (address string) {
	address, t.pending = t.pending, ""
	return address
}

func (t *Tried) add(u *reverseproxy.Upstream) {
	if t != nil {
		t.addresses = append(t.addresses, u.Dial)
		t.pending = u.Dial
	}
}

func (t *Tried) has(u *reverseproxy.Upstream) bool {
	return t != nil && slices.Contains(t.addresses, u.Dial)
}

func (t *Tried) isLast(u *reverseproxy.Upstream) bool {
	return t.any() && t.addresses[len(t.addresses)-1] == u.Dial
}

// any reports whether the request has tried any upstream.
func (t *Tried) any() bool { return t != nil && len(t.addresses) > 0 }

// startOver forgets what was tried, which was all there is.
func (t *Tried) startOver() { t.addresses = t.addresses[:0] }

// mayHold reports whether the request may be held, which it is only once.
func (t *Tried) mayHold() bool {
	if t == nil {
		return true
	}
	first := !t.held
	t.held = true
	return first
}
