// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// settles waits until the list, the log and the events agree with the model.
func (c *chaos) settles(within time.Duration) {
	c.t.Helper()
	wrong := ""
	settled := func() bool {
		// while requests accuse some, others get requests
		suspect := c.look()
		some, failsOpen := c.gets()
		for _, u := range c.all {
			// of what Caddy itself finds out, there is no other sign. That a backup is
			// unhealthy may show by fail-open only, and of one that drains only its clients see it
			if why := c.caddy.One(u.Addr).Why; u.core && u.up() && u.mode != "maintenance" && u.weight() > 0 &&
				strings.Count(why, "Caddy's own health checks consider it unhealthy") != map[bool]int{false: 1 + strings.Count(why, "elsewhere in this pool")}[u.healthy()] {
				wrong = fmt.Sprintf("%s is explained as %s", u, why)
				return false
			}
			gets := slices.Contains(some, u)
			if e := c.caddy.One(u.Addr); u.core && !suspect && (e.Serving != (u.serves() && gets) || e.FailOpen != failsOpen || (e.EffectiveWeight > 0) != gets) {
				wrong = fmt.Sprintf("%s is shown as serving: %v, %s; fail-open: %v, weight %g", u, e.Serving, e.Why, e.FailOpen, e.EffectiveWeight)
				return false
			}
			if e := c.caddy.One(u.Addr); u.mode != "maintenance" && e.Status != u.state() {
				wrong = fmt.Sprintf("%s is shown as %s", u, e.Status)
				return false
			}
		}
		lines := make(map[string][]string)
		for _, line := range c.caddy.Lines("upstream is ") {
			if strings.Contains(line.Msg, "ejected") {
				continue
			}
			lines[line.Upstream] = append(lines[line.Upstream], fmt.Sprintf("from %s to %s", line.Previous, strings.TrimPrefix(line.Msg, "upstream is ")))
		}
		told := eventsByUpstream()
		for _, u := range c.all {
			if !slices.Equal(lines[u.Addr], c.flips[u.Addr]) {
				wrong = fmt.Sprintf("the log tells of %s: %q; want %q", u, lines[u.Addr], c.flips[u.Addr])
				return false
			}
			var events []string
			for _, flip := range c.flips[u.Addr] {
				events = append(events, map[bool]string{true: "healthy", false: "unhealthy"}[strings.HasSuffix(flip, "up")])
			}
			if !slices.Equal(told[u.Addr], events) {
				wrong = fmt.Sprintf("the events of %s: %s; want %s", u, told[u.Addr], events)
				return false
			}
		}
		return true
	}
	// while this process is late, probes that time out do not count
	inTime := testkit.Poll(within+testkit.Slack, settled)
	if !inTime && c.caddy.Logged("this process is late") > 0 {
		inTime = testkit.Poll(testkit.Patience, settled)
	}
	if !inTime {
		c.t.Errorf("not in %s: %s", within+testkit.Slack, wrong)
	}
}

// eventsByUpstream returns the names of the events of each upstream that changed its status.
func eventsByUpstream() map[string][]string {
	told := make(map[string][]string)
	for _, e := range testkit.RecordedEvents() {
		if upstream, ok := e.Data["upstream"].(string); ok && e.Name() != "ejected" {
			told[upstream] = append(told[upstream], e.Name())
		}
	}
	return told
}

// toldOfFailOpen checks that the events of fail-open begin and end in turn, and that the
// last one is right.
func (c *chaos) toldOfFailOpen(failsOpen bool) {
	c.t.Helper()
	var told []bool
	right := func() bool {
		told = nil
		for _, e := range testkit.RecordedEvents() {
			if e.Name() == "fail_open" {
				told = append(told, e.Data["active"].(bool))
			}
		}
		for i, active := range told {
			if active != (i%2 == 0) {
				return false
			}
		}
		return failsOpen == (len(told)%2 == 1)
	}
	if !testkit.Poll(testkit.Slack, right) {
		c.t.Errorf("told of fail-open: %v, want one event each time that it begins or ends, and now %v", told, failsOpen)
	}
}
