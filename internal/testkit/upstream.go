// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"reflect"
	"sync/atomic"
	"unsafe"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/health"
)

// Decide makes a probe of a target pass or fail, and returns when its subscribers know. A
// target that has the status already is left alone.
func Decide(target *health.Target, passes bool) {
	want := health.Down
	if passes {
		want = health.Up
	}
	if target.Status() == want {
		return
	}
	known := make(chan struct{})
	defer target.Attach(health.Driver{
		Probe: func(context.Context, bool) (bool, error) {
			if passes {
				return false, nil
			}
			return false, errors.New("sick")
		},
		Report: func(health.Transition) { close(known) },
	}, 0)()
	<-known
}

// SetHealthy does what Caddy's own health checks do. Caddy exports no way to do so, so it
// writes to an unexported field.
func SetHealthy(u *reverseproxy.Upstream, healthy bool) {
	value := int32(1)
	if healthy {
		value = 0
	}
	field := reflect.ValueOf(u).Elem().FieldByName("unhealthy")
	(*atomic.Int32)(unsafe.Pointer(field.UnsafeAddr())).Store(value)
}

// SetRequests does what the handler does: it sets how many requests an upstream has in
// flight.
func SetRequests(u *reverseproxy.Upstream, n int) {
	field := reflect.ValueOf(u.Host).Elem().FieldByName("numRequests")
	(*atomic.Int64)(unsafe.Pointer(field.UnsafeAddr())).Store(int64(n))
}

// Get returns a request as a handler gets it.
func Get() *http.Request {
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	return r.WithContext(context.WithValue(r.Context(), caddyhttp.VarsCtxKey, make(map[string]any)))
}
