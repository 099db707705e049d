// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"net/url"
	"slices"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/witness"
)

// Tried is what one request remembers from one selection to the next. It is kept where
// the handler retries only. All methods can be called on nil: nothing was tried then.
type Tried struct {
	// URL tells apart the requests that share their placeholders: those of a handle_errors
	// route are those of the request that failed. All tries of a request have one.
	URL *url.URL

	// addresses are those tried, the last one at the end: upstreams of dynamic sources
	// are new values for every try.
	addresses []string
	held      bool
	waited    time.Duration   // for verdicts and in the queue
	refused   bool            // it gets no upstream any more
	failed    string          // the address of the last try that failed, also after starting over
	counted   witness.Counted // by that
}

// Add adds the upstream of a try, whether that failed, and what it counted. If it failed,
// what an earlier try at another upstream counted is taken back: a request that fails
// everywhere says nothing about one.
func (t *Tried) Add(u *reverseproxy.Upstream, failed bool, c witness.Counted) {
	if failed {
		if t.failed != u.Dial {
			t.counted.TakeBack()
		}
		t.failed, t.counted = u.Dial, c
	}
	t.addresses = append(t.addresses, u.Dial)
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

// hasWaited returns how long the request has waited.
func (t *Tried) hasWaited() time.Duration {
	if t == nil {
		return 0
	}
	return t.waited
}

// isRefused reports whether the request waited in vain, or too many others waited.
func (t *Tried) isRefused() bool { return t != nil && t.refused }

// mayHold reports whether the request may be held, which it is only once.
func (t *Tried) mayHold() bool {
	if t == nil {
		return true
	}
	first := !t.held
	t.held = true
	return first
}
