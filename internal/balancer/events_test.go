// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"slices"
	"testing"

	"github.com/caddy-alive/caddy-alive/internal/settings"
)

// A pool that ignores health leaves with its config: the config that runs on emits that
// it no longer does. At the end of the last config there is no such event, since the pool
// did not recover, and a stop does not warn of an event that was dropped.
func TestFailOpenEvents_AtTheEndOfAConfig(t *testing.T) {
	for _, replaced := range []bool{false, true} {
		p := newPolicy(t, "uu")
		answering(t, p.registry)
		p.decide("dd")
		if got := takeFailOpen(p.registry.Events); !slices.Equal(got, []bool{true}) {
			t.Errorf("replaced %t: events %v, want that it began", replaced, got)
		}
		newest, want := p.registry, []bool(nil)
		if replaced {
			newest, want = newRegistry(t, settings.NewSet()), []bool{false}
			answering(t, newest)
		}
		p.end(t)
		if got := takeFailOpen(newest.Events); !slices.Equal(got, want) {
			t.Errorf("replaced %t: events %v at the end, want %v", replaced, got, want)
		}
	}
}

// The handlers of one pool emit once that it ignores health, and once that it no longer
// does: when the last of them no longer does, or ends.
func TestFailOpenEvents_OfSeveralHandlers(t *testing.T) {
	two := newPolicy(t, "uu")
	answering(t, two.registry)
	one := newPolicy(t, "uu")
	answering(t, one.registry)
	for _, step := range []struct {
		what string
		then func()
		want []bool
	}{
		{"one begins", func() { one.decide("dd") }, []bool{true}},
		{"the other, too", func() { two.decide("dd") }, nil},
		{"one does no longer", func() { one.decide("u?") }, nil},
		{"the other ends with the config before", func() { two.end(t) }, []bool{false}},
		{"one begins again", func() { one.decide("d?") }, []bool{true}},
		{"one does no longer again", func() { one.decide("u?") }, []bool{false}},
		{"one ends", func() { one.end(t) }, nil},
	} {
		step.then()
		if got := takeFailOpen(one.registry.Events); !slices.Equal(got, step.want) {
			t.Errorf("%s: events %v, want %v", step.what, got, step.want)
		}
	}
}
