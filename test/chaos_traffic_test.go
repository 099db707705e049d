// SPDX-License-Identifier: Apache-2.0

package test

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// look takes over from the list which upstreams are ejected, and reports whether any is
// suspect.
func (c *chaos) look() (suspect bool) {
	for _, u := range c.all {
		row := c.caddy.One(u.Addr)
		u.ejected = row.EjectedUntil != nil
		suspect = suspect || row.Suspect
	}
	return suspect
}

// calmsDown waits until no upstream is suspect, and until those that are mended are no longer
// ejected, which takes requests.
func (c *chaos) calmsDown() {
	c.t.Helper()
	returns := func(u *chaotic) bool { return u.isEjected() && u.answers() }
	client := c.caddy.Client()
	if !testkit.Poll(chaosEjected+testkit.Slack, func() bool {
		c.look()
		if !slices.ContainsFunc(c.all, returns) {
			return true
		}
		c.ask(client)
		return false
	}) {
		c.t.Errorf("still ejected, though they answer: %v", c.those(returns))
	}
	if !testkit.Poll(3*(chaosTimeout+chaosFast)+testkit.Slack, func() bool { return !c.look() }) {
		c.t.Errorf("suspect without an end, of %v", c.all)
	}
}

// sum returns the sum of the metrics with a name.
func (c *chaos) sum(name string) (n float64) {
	c.t.Helper()
	for series, value := range c.caddy.Metrics() {
		if strings.HasPrefix(series, name+"{") {
			n += value
		}
	}
	return n
}

// wantAnswersOf fails the test if upstreams answered that get nothing. Those that are ejected
// may get a trial, and others serve meanwhile.
func (c *chaos) wantAnswersOf(got map[string]int, some []*chaotic) {
	c.t.Helper()
	may := map[string]bool{"error": true}
	for _, u := range some {
		may[u.Name] = true
	}
	for _, u := range c.those((*chaotic).isAlive) {
		may[u.Name] = true
	}
	for name := range maps.Keys(got) {
		if !may[name] {
			c.t.Errorf("answers by backend: %v, want none of %s", got, name)
		}
	}
	answering := slices.DeleteFunc(slices.Clone(some), func(u *chaotic) bool { return !u.answers() })
	for _, u := range answering {
		if got[u.Name] == 0 {
			c.t.Errorf("answers by backend: %v, want some of %s", got, u.Name)
		}
	}
}

// awaitGroups waits until the groups in use are as spill says. One joins at once, and leaves
// when enough has served for a while, not before. If the weight may have changed in between,
// which of them are in use follows from the list.
func (c *chaos) awaitGroups(unsteady bool, began time.Time) {
	c.t.Helper()
	least, most := c.joining()
	c.unsure = (c.unsure || unsteady) && c.spills() > 0
	if c.unsure {
		inUse := func() bool {
			for c.joined = least; c.joined <= max(least, most); c.joined++ {
				if c.isInUse(c.joined) {
					return true
				}
			}
			return false
		}
		if !testkit.Poll(time.Duration(chaosGroups-1)*spillHeld+testkit.Slack, inUse) {
			c.t.Errorf("the groups in use are not those of any number from %d to %d that may have joined: %v", least, most, c.all)
			return
		}
		c.unsure = false
		for joined := c.joined + 1; joined < chaosGroups; joined++ { // it may not have left yet, and make no difference
			c.unsure = c.unsure || c.isInUse(joined)
		}
		return
	}
	for c.joined = max(c.joined, least); c.joined > max(least, most); c.joined-- {
		if !c.isInUse(c.joined - 1) { // else it makes no difference when it leaves
			for time.Since(began) < spillHeld {
				if c.isInUse(c.joined - 1) {
					c.t.Errorf("group %d has left %s after it began", c.joined, time.Since(began))
				}
				time.Sleep(50 * time.Millisecond)
			}
		}
		began = time.Now()
		if !testkit.Poll(spillHeld+testkit.Slack, func() bool { return c.isInUse(c.joined - 1) }) {
			c.t.Errorf("group %d has not left: %v", c.joined, c.all)
		}
	}
}

// isInUse reports whether the list has the upstreams that get requests while so many groups
// have joined the primaries.
func (c *chaos) isInUse(joined int) bool {
	some, _ := c.getsWith(joined)
	return !slices.ContainsFunc(c.all, func(u *chaotic) bool {
		return (c.caddy.One(u.Addr).EffectiveWeight > 0) != slices.Contains(some, u)
	})
}
