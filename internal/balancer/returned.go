// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"net/http"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/source"
)

// emptyFor is how long after the last request a pool counts as empty.
const emptyFor = 10 * time.Minute

// returned is what a dynamic source returned for the last request.
type returned int32

const (
	unknown returned = iota // there was no request
	some                    // upstreams
	nothing                 // an error, so that the request was for the list
	empty                   // no upstreams and no error, so that the list was not used either
)

// lastReturn is what the dynamic source of a handler returned last, for all handlers that have this
// source, also before a reload. It is never known of a source that depends on the request.
type lastReturn struct {
	list       *watchList // nil if it is never known
	besideList bool       // the config lists upstreams, too
}

// newLastReturn returns that of a handler whose upstreams of the source are in a list.
func newLastReturn(b *Balancer, list *watchList) lastReturn {
	given := b.config.Proxy.DynamicUpstreamsRaw
	if given == nil || source.DependsOnRequest(given) {
		return lastReturn{}
	}
	return lastReturn{list, len(b.listed) > 0}
}

// note notes what the source returned for a request. It writes only if that changes. A client that
// has left can be the reason for an error.
func (l *lastReturn) note(r returned, request *http.Request) {
	if l.list != nil && l.list.returned.Load() != int32(r) && request.Context().Err() == nil {
		l.list.returned.Store(int32(r))
	}
}

// noteEmpty notes that a request found no upstream.
func (l *lastReturn) noteEmpty(request *http.Request) {
	if l.list == nil || request.Context().Err() != nil {
		return
	}
	r := nothing
	if l.besideList {
		r = empty
	}
	l.list.foundNone.Store(int64(elapsed(time.Now())))
	l.note(r, request)
}

// get returns what the source returned for the last request.
func (l *lastReturn) get() returned {
	if l.list == nil {
		return unknown
	}
	return returned(l.list.returned.Load())
}

// isNone reports whether the source returned no upstreams for the last request.
func (l *lastReturn) isNone() bool {
	r := l.get()
	return r == nothing || r == empty
}

// isOutage reports whether requests find no upstream.
func (l *lastReturn) isOutage() bool {
	r := l.get()
	return (r == empty || r == nothing && !l.besideList) && elapsed(time.Now())-time.Duration(l.list.foundNone.Load()) < emptyFor
}
