// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"reflect"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/health"
)

// NewTarget returns a target that is probed only when a test probes it. One probe
// decides.
func NewTarget() *health.Target {
	return health.NewTarget(health.Settings{
		Interval: time.Hour, FastInterval: time.Hour, DownInterval: time.Hour,
		Timeout: time.Second, Passes: 1, Fails: 1,
	})
}

// DecideAll gives each target the verdict of its letter: u for up, d for down. With any
// other letter it stays as it is.
func DecideAll(targets []*health.Target, verdicts string) {
	for i, v := range verdicts {
		if v == 'u' || v == 'd' {
			Decide(targets[i], v == 'u')
		}
	}
}

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

// SetDraining has a probe of a target that is up say whether it is draining, and returns
// when its subscribers know.
func SetDraining(target *health.Target, draining bool) {
	if target.Draining() == draining {
		return
	}
	known := make(chan struct{})
	defer target.Attach(health.Driver{
		Probe:  func(context.Context, bool) (bool, error) { return draining, nil },
		Report: func(health.Transition) { close(known) },
	}, 0)()
	<-known
}

// Breaker is a circuit breaker that a test opens.
type Breaker struct{ Open atomic.Bool }

// OK reports whether it is closed.
func (b *Breaker) OK() bool { return !b.Open.Load() }

// RecordMetric does nothing.
func (*Breaker) RecordMetric(int, time.Duration) {}

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
	ctx := context.WithValue(r.Context(), caddy.ReplacerCtxKey, caddy.NewReplacer())
	return r.WithContext(context.WithValue(ctx, caddyhttp.VarsCtxKey, make(map[string]any)))
}

// Same returns one request again and again.
func Same() func() *http.Request {
	r := Get()
	return func() *http.Request { return r }
}

// Counts returns how often each of n positions is among picks.
func Counts(picks []int, n int) []int {
	c := make([]int, n)
	for _, i := range picks {
		if i >= 0 {
			c[i]++
		}
	}
	return c
}
