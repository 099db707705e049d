// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"fmt"
	"net/url"
	"time"

	"github.com/spf13/cobra"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	"github.com/caddy-alive/caddy-alive/internal/view"
)

// runStatus shows the upstreams, once or until interrupted.
func runStatus(cmd *cobra.Command) error {
	watch, _ := cmd.Flags().GetBool("watch")
	check, _ := cmd.Flags().GetBool("check")
	asJSON, _ := cmd.Flags().GetBool("json")
	all, _ := cmd.Flags().GetBool("all")
	wanted, err := filterOf(cmd)
	if err != nil {
		return err
	}
	c, err := newClient(cmd)
	if err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	switch {
	case check:
		return checkPools(c, wanted, asJSON)
	case watch:
		w := watcher{client: c, filter: wanted, asJSON: asJSON, all: all}
		return w.run(out)
	}
	listed, err := askFor(c, wanted)
	if err != nil {
		return err
	}
	var show bytes.Buffer
	if asJSON {
		text, err := wanted.json(listed.rows, listed.text)
		if err != nil {
			return err
		}
		show.Write(printableJSON(text))
	} else {
		s := screenOf(out)
		r := report{screen: s, listing: listed, filter: wanted, now: time.Now()}
		if !all {
			r.room = s.lines - 1 // the prompt follows
		}
		r.write(&show)
	}
	_, err = out.Write(show.Bytes())
	return err
}

// listing is what Caddy lists.
type listing struct {
	rows  []view.Upstream
	pools []view.Pool
	text  []byte // the rows as they were answered
}

// askFor returns all pools and their upstreams, or those of the pool that a filter wants. It
// returns an error if there is no such pool, or no such upstream.
func askFor(c *client, wanted filter) (listing, error) {
	var query url.Values
	if wanted.pool != "" {
		query = url.Values{"pool": {wanted.pool}}
	}
	rows, text, err := c.list(askTimeout, query)
	if err != nil {
		return listing{}, err
	}
	pools, err := c.pools(askTimeout, query)
	if isNotFound(err, "unknown_pool") && len(rows) > 0 {
		err = nil // the pool is gone, and what was set for it at run time is not
	}
	if err != nil {
		return listing{}, err
	}
	if len(pools) == 0 {
		pools = view.Pools(rows)
	}
	return listing{rows, pools, text}, wanted.validate(rows)
}

// exitOutage is the exit status of status --check if no upstream of some pool serves.
const exitOutage = 3

// checkPools shows the pools in which no upstream serves, of all or of one. With JSON, the
// lines go to the standard error.
func checkPools(c *client, wanted filter, asJSON bool) error {
	listed, err := askFor(c, wanted)
	if err != nil {
		return err
	}
	out := c.cmd.OutOrStdout()
	if asJSON {
		if _, err := out.Write(printableJSON(listed.text)); err != nil {
			return err
		}
		out = c.cmd.ErrOrStderr()
	}
	lines := view.Outages(listed.pools)
	for _, line := range lines {
		if _, err := fmt.Fprintln(out, printable(line)); err != nil {
			return err
		}
	}
	if len(lines) == 0 {
		return nil
	}
	c.cmd.SilenceErrors = true // the lines are the message
	exit := func(caddycmd.Flags) (int, error) { return exitOutage, nil }
	return caddycmd.WrapCommandFuncForCobra(exit)(c.cmd, nil)
}
