// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/view"
)

// checkInterval is the pause between two checks of check --wait.
const checkInterval = time.Second

// runCheck has an upstream checked and shows the results, once or until it is up.
func runCheck(cmd *cobra.Command, upstream string) error {
	wait, err := waitFlag(cmd)
	if err != nil {
		return err
	}
	c, err := newClient(cmd)
	if err != nil {
		return err
	}
	deadline := time.Now().Add(wait)
	for {
		limit := checkTimeout
		if wait > 0 {
			limit = min(limit, max(askTimeout, time.Until(deadline)))
		}
		entries, err := c.check(limit, upstream)
		if err != nil {
			return err
		}
		failed := writeResults(cmd.OutOrStdout(), entries)
		switch {
		case failed:
			err = fmt.Errorf("%s does not pass", printable(upstream))
		case slices.ContainsFunc(entries, func(e view.Upstream) bool { return e.Mode != settings.Maintenance && e.Status != "up" }):
			err = fmt.Errorf("%s passes, but stays %s until it has passed several times in a row", printable(upstream), printable(entries[0].Status))
		default:
			return nil
		}
		remaining := time.Until(deadline)
		if remaining <= 0 {
			return err
		}
		if err := c.pause(min(checkInterval, remaining)); err != nil {
			return err
		}
	}
}

// writeResults writes the last result of each check, and reports whether any failed.
// A check that several pools have is written once.
func writeResults(out io.Writer, entries []view.Upstream) (failed bool) {
	written := make(map[string]bool)
	for _, e := range entries {
		for _, c := range e.Checks {
			if c.Last == nil || written[c.Check] {
				continue
			}
			written[c.Check] = true
			verdict := "passed"
			if !c.Last.Passed {
				failed, verdict = true, "failed: "+c.Last.Reason
			}
			fmt.Fprintf(out, "%s  %s  %g ms  %s\n", printable(e.Upstream), printable(c.Check), c.Last.DurationMS, printable(verdict))
		}
	}
	return failed
}
