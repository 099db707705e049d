// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/view"
)

// waitInterval is the pause between two requests of --wait.
const waitInterval = 200 * time.Millisecond

// runMode sets the mode of an upstream. With --wait, it waits until the requests in
// flight have ended.
func runMode(cmd *cobra.Command, upstream, mode string) error {
	wait, err := waitFlag(cmd)
	if err != nil {
		return err
	}
	c, err := newClient(cmd)
	if err != nil {
		return err
	}
	limit := askTimeout
	if wait > 0 {
		limit = timeoutUntil(time.Now().Add(wait))
	}
	entries, err := c.patch(limit, upstream, "", map[string]any{"mode": mode})
	if err != nil {
		return err
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", printable(upstream), mode)
	if mode == settings.Maintenance {
		c.warnOfOutages(limit, entries)
	}
	if wait > 0 {
		return c.waitUntilIdle(upstream, mode, wait)
	}
	if warning := newRequestsWarning(entries); mode == settings.Drain && warning != "" {
		c.warn(warning)
	}
	return nil
}

// newRequestsWarning names the pools in which an upstream gets new requests although
// its mode is not ready. It is empty if there are none.
func newRequestsWarning(entries []view.Upstream) string {
	var pools []string
	for _, e := range entries {
		if e.EffectiveWeight > 0 {
			pools = append(pools, printable(e.Pool))
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

// warnOfOutages warns of the pools of these entries in which no upstream serves now.
// The change is made already, so errors are ignored.
func (c *client) warnOfOutages(limit time.Duration, changed []view.Upstream) {
	var pools []string
	for _, e := range changed {
		if !e.Gone && !slices.Contains(pools, e.Pool) {
			pools = append(pools, e.Pool)
		}
	}
	for _, pool := range pools[:min(len(pools), maxWarnedPools)] {
		entries, _, err := c.list(limit, url.Values{"pool": {pool}})
		if err != nil {
			continue
		}
		for _, line := range view.Outages(entries) {
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
	for {
		if err := c.pause(max(0, min(waitInterval, time.Until(deadline)))); err != nil {
			return err
		}
		entries, _, err := c.list(timeoutUntil(deadline), url.Values{"upstream": {upstream}})
		if err != nil {
			return err
		}
		entries = slices.DeleteFunc(entries, func(e view.Upstream) bool { return e.Gone })
		if len(entries) == 0 {
			return fmt.Errorf("%s: no pool has it any more, so it is not known what is in flight", name)
		}
		var pending string
		warning := newRequestsWarning(entries)
		switch n := requestsInFlight(entries); {
		case n > 0:
			pending = fmt.Sprintf("requests in flight: %d", n)
		case mode != settings.Ready && warning != "":
			pending = warning
		case time.Now().Before(settled):
			pending = fmt.Sprintf("other members of the fleet %s may not have read the change yet; they read every %s", fleet, syncInterval)
		case fleet != "":
			fmt.Fprintf(c.cmd.OutOrStdout(), "%s: nothing is in flight at this Caddy; ask each of the fleet %s, by --address\n", name, fleet)
			return nil
		default:
			fmt.Fprintf(c.cmd.OutOrStdout(), "%s: nothing is in flight\n", name)
			return nil
		}
		if !time.Now().Before(deadline) {
			return fmt.Errorf("%s: after %s, %s", name, wait, pending)
		}
	}
}

// requestsInFlight returns how many requests an upstream has in flight. Caddy counts
// them by address, so each pool that has the upstream shows all of them.
func requestsInFlight(entries []view.Upstream) (most int) {
	for _, e := range entries {
		most = max(most, e.Requests)
	}
	return most
}

// runWeight sets a weight, or resets it.
func runWeight(cmd *cobra.Command, upstream, text string) error {
	var weight any // nil is null: that of the config
	if text != "reset" {
		n, err := strconv.Atoi(text)
		if err != nil {
			return errWeight(text)
		}
		weight = n
	}
	c, err := newClient(cmd)
	if err != nil {
		return err
	}
	pool, _ := cmd.Flags().GetString("pool")
	entries, err := c.patch(askTimeout, upstream, pool, map[string]any{"weight": weight})
	for _, e := range entries {
		fmt.Fprintf(cmd.OutOrStdout(), "%s: weight %d in the pool %s\n", printable(e.Upstream), e.Weight, printable(e.Pool))
	}
	if err == nil && weight == 0 {
		c.warnOfOutages(askTimeout, entries)
	}
	return err
}
