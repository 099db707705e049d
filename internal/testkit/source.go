// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

func init() { caddy.RegisterModule(testSource{}) }

// testSource is the module of a Source.
type testSource struct {
	ID string `json:"id,omitempty"`

	handler *reverseproxy.Handler // nil outside of one
}

// CaddyModule returns the Caddy module information.
func (testSource) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.reverse_proxy.upstreams.alive_test_source",
		New: func() caddy.Module { return new(testSource) },
	}
}

// Provision finds the handler that the source belongs to.
func (s *testSource) Provision(ctx caddy.Context) error {
	for _, m := range ctx.Modules() {
		if h, ok := m.(*reverseproxy.Handler); ok {
			s.handler = h
		}
	}
	return nil
}

// UnmarshalCaddyfile reads the ID of the source.
func (s *testSource) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	if !d.Args(&s.ID) {
		return d.ArgErr()
	}
	return nil
}

// GetUpstreams returns the upstreams that a test has set, for a request.
func (s *testSource) GetUpstreams(r *http.Request) ([]*reverseproxy.Upstream, error) {
	v, ok := sources.Load(s.ID)
	if !ok {
		return nil, fmt.Errorf("no source %s", s.ID)
	}
	of := v.(*Source)
	if s.handler != nil {
		of.policy.Store(&s.handler.LoadBalancing.SelectionPolicy)
	}
	dials, err := (*of.answer.Load())(r)
	return pool(dials...), err
}

// sources has the source of every ID.
var sources sync.Map

// Source is a source of upstreams that a test decides on, by its name in a Caddyfile.
type Source struct {
	id     string
	answer atomic.Pointer[func(*http.Request) ([]string, error)]
	policy atomic.Pointer[reverseproxy.Selector] // of the last request
}

// NewSource returns a source that answers with these addresses until it is told
// otherwise.
func NewSource(tb testing.TB, dials ...string) *Source {
	tb.Helper()
	s := &Source{id: fmt.Sprintf("source%d", names.Add(1))}
	s.Set(dials...)
	sources.Store(s.id, s)
	tb.Cleanup(func() { sources.Delete(s.id) })
	return s
}

// Set changes the addresses that it answers with.
func (s *Source) Set(dials ...string) {
	s.Answer(func(*http.Request) ([]string, error) { return dials, nil })
}

// Answer sets what it answers to each request.
func (s *Source) Answer(answer func(*http.Request) ([]string, error)) { s.answer.Store(&answer) }

// Policy returns the selection policy of the handler that asked last, nil before.
func (s *Source) Policy() reverseproxy.Selector {
	if policy := s.policy.Load(); policy != nil {
		return *policy
	}
	return nil
}

// Name is what stands after `dynamic` in a Caddyfile.
func (s *Source) Name() string { return "alive_test_source " + s.id }

// pool makes new upstreams, as sources do for every request. Nil stays nil.
func pool(dials ...string) []*reverseproxy.Upstream {
	if dials == nil {
		return nil
	}
	upstreams := make([]*reverseproxy.Upstream, 0, len(dials))
	for _, dial := range dials {
		upstreams = append(upstreams, &reverseproxy.Upstream{Dial: dial})
	}
	return upstreams
}

// ManyAddresses are that many addresses that refuse connections, on Linux at once.
func ManyAddresses(port, n int) []string {
	dials := make([]string, n)
	for i := range dials {
		dials[i] = fmt.Sprintf("127.%d.%d.%d:%d", 1+i/65536, i/256%256, i%256, port)
	}
	return dials
}
