// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/caddy-alive/caddy-alive/internal/limits"
	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/view"
)

const (
	// waitInterval is the pause between two requests of --wait.
	waitInterval = 200 * time.Millisecond
	// progressInterval is how often --wait says what it waits for: in a fleet, and while
	// clients are bound to the upstream.
	progressInterval = 5 * time.Second
)

// runMode sets the mode of an upstream. With --wait, it waits until the requests in
// flight have ended, in a fleet at all members.
func runMode(cmd *cobra.Command, upstream, mode string) error {
	wait, err := waitFlag(cmd)
	if err != nil {
		return err
	}
	ignoreLost, _ := cmd.Flags().GetBool("ignore-lost")
	if ignoreLost && wait == 0 {
		return errors.New("--ignore-lost has no meaning without --wait")
	}
	c, err := newClient(cmd)
	if err != nil {
		return err
	}
	limit := askTimeout
	if wait > 0 {
		limit = timeoutUntil(time.Now().Add(wait))
	}
	change, done := map[string]any{"mode": mode}, mode
	rebind, _ := cmd.Flags().GetBool("rebind")
	if rebind {
		change["rebind"] = true
		done += ", and clients that are bound to it move"
	}
	inFleet := false
	if wait > 0 && mode != settings.Ready {
		if inFleet, err = isInFleet(c, limit); err != nil {
			return err
		}
	}
	if ignoreLost && !inFleet {
		return fmt.Errorf("--ignore-lost has no meaning here: the Caddy at %s is in no fleet", c.address)
	}
	if inFleet {
		if change["wait"], err = announcedWait(wait); err != nil {
			return err
		}
		limit = askTimeout
	}
	rows, err := c.patch(limit, upstream, "", change)
	if err != nil {
		return err
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", printable(upstream), done)
	if mode == settings.Maintenance {
		c.warnOfOutages(limit, rows)
	}
	if inFleet {
		w := fleetWait{client: c, setting: view.Upstream{Upstream: upstream, Mode: mode, Rebind: rebind}, longest: wait, ignoreLost: ignoreLost}
		return w.run()
	}
	if wait > 0 {
		return c.waitUntilIdle(upstream, mode, wait)
	}
	if mode == settings.Drain {
		for _, warning := range []string{newRequestsWarning(rows), boundTraffic(rows)} {
			if warning != "" {
				c.warn(warning)
			}
		}
	}
	return nil
}

// boundTraffic says how many requests clients send that are bound to an upstream which
// drains, and what moves them. It is empty if there are none, or they move already.
func boundTraffic(rows []view.Upstream) string {
	var all view.Upstream
	for _, row := range rows {
		if row.Mode == settings.Drain && !row.Rebind {
			all.Bound += row.Bound
		}
	}
	if all.Bound == 0 {
		return ""
	}
	return all.BoundTraffic() + ", which --rebind moves"
}

// butBound is what a line ends with that says that nothing is in flight.
func butBound(bound string) string {
	if bound == "" {
		return ""
	}
	return ", but " + bound
}

// newRequestsWarning names the pools in which an upstream gets new requests although
// its mode is not ready. It is empty if there are none.
func newRequestsWarning(rows []view.Upstream) string {
	var pools []string
	for _, row := range rows {
		if row.EffectiveWeight > 0 {
			pools = append(pools, printable(row.Pool))
		}
	}
	switch len(pools) {
	case 0:
		return ""
	case 1:
		return "it still gets new requests: no other upstream of the pool " + pools[0] + " serves"
	default:
		return "it still gets new requests: no other upstream serves in the pools " + strings.Join(view.Few(pools), ", ")
	}
}

// maxWarnedPools bounds how many pools are requested for warnings.
const maxWarnedPools = 10

// warnOfOutages warns of the pools of these rows in which no upstream serves now.
// The change is made already, so errors are ignored.
func (c *client) warnOfOutages(limit time.Duration, changed []view.Upstream) {
	var pools []string
	for _, row := range changed {
		if !row.Gone && !slices.Contains(pools, row.Pool) {
			pools = append(pools, row.Pool)
		}
	}
	for _, pool := range pools[:min(len(pools), maxWarnedPools)] {
		rows, _, err := c.list(limit, url.Values{"pool": {pool}})
		if err != nil {
			continue
		}
		for _, line := range view.Outages(view.Pools(rows)) {
			c.warn(printable(line))
		}
	}
}

// waitUntilIdle waits until an upstream has no requests in flight, and gets no new ones
// unless its mode is ready.
func (c *client) waitUntilIdle(upstream, mode string, wait time.Duration) error {
	name := printable(upstream)
	deadline := time.Now().Add(wait)
	fleet, syncInterval, err := c.fleet(timeoutUntil(deadline))
	if err != nil {
		return err
	}
	// A request may have been on its way to the upstream when the mode changed, and
	// other members of a fleet have not read the change yet.
	settled := time.Now().Add(syncInterval)
	next := time.Now().Add(progressInterval)
	for {
		if err := c.pause(max(0, min(waitInterval, time.Until(deadline)))); err != nil {
			return err
		}
		rows, _, err := c.list(timeoutUntil(deadline), url.Values{"upstream": {upstream}})
		if err != nil {
			return err
		}
		rows = slices.DeleteFunc(rows, func(row view.Upstream) bool { return row.Gone })
		if len(rows) == 0 {
			return fmt.Errorf("%s: no pool has it any more, so it is not known what is in flight", name)
		}
		var pending string
		warning, bound := newRequestsWarning(rows), boundTraffic(rows)
		but := butBound(bound)
		switch n := requestsInFlight(rows); {
		case n > 0 && bound != "":
			pending = fmt.Sprintf("requests in flight: %d; %s", n, bound)
		case n > 0:
			pending = fmt.Sprintf("requests in flight: %d", n)
		case mode != settings.Ready && warning != "":
			pending = warning
		case time.Now().Before(settled):
			pending = fmt.Sprintf("other members of the fleet %s may not have read the change yet; they read every %s", fleet, syncInterval)
		case fleet != "":
			fmt.Fprintf(c.cmd.OutOrStdout(), "%s: nothing is in flight at this Caddy%s; ask each of the fleet %s, by --address\n", name, but, fleet)
			return nil
		default:
			fmt.Fprintf(c.cmd.OutOrStdout(), "%s: nothing is in flight%s\n", name, but)
			return nil
		}
		if !time.Now().Before(deadline) {
			return fmt.Errorf("%s: after %s, %s", name, wait, pending)
		}
		if bound != "" && !time.Now().Before(next) { // it may never end
			next = time.Now().Add(progressInterval)
			fmt.Fprintf(c.cmd.OutOrStdout(), "%s: %s\n", name, pending)
		}
	}
}

// requestsInFlight returns how many requests an upstream has in flight. Caddy counts
// them by address, so each pool that has the upstream shows all of them.
func requestsInFlight(rows []view.Upstream) (most int) {
	for _, row := range rows {
		most = max(most, row.Requests)
	}
	return most
}

// runWeight sets a weight, or resets it.
func runWeight(cmd *cobra.Command, upstream, text string) error {
	var weight any // nil is null: that of the config
	if text != "reset" {
		n, err := limits.ParseWeight(printable(text), orReset)
		if err != nil {
			return err
		}
		weight = n
	}
	c, err := newClient(cmd)
	if err != nil {
		return err
	}
	pool, _ := cmd.Flags().GetString("pool")
	rows, err := c.patch(askTimeout, upstream, pool, map[string]any{"weight": weight})
	for _, row := range rows {
		fmt.Fprintf(cmd.OutOrStdout(), "%s: weight %d in the pool %s\n", printable(row.Upstream), row.Weight, printable(row.Pool))
	}
	if err == nil && weight == 0 {
		c.warnOfOutages(askTimeout, rows)
	}
	return err
}
