// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/url"
	"time"

	"github.com/spf13/cobra"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	"github.com/caddy-alive/caddy-alive/internal/view"
)

// watchInterval is the pause between two requests of status --watch.
const watchInterval = time.Second

// runStatus shows the upstreams, once or until interrupted.
func runStatus(cmd *cobra.Command) error {
	watch, _ := cmd.Flags().GetBool("watch")
	check, _ := cmd.Flags().GetBool("check")
	asJSON, _ := cmd.Flags().GetBool("json")
	notServing, _ := cmd.Flags().GetBool("not-serving")
	pool, _ := cmd.Flags().GetString("pool")
	c, err := newClient(cmd)
	if err != nil {
		return err
	}
	if check {
		return checkPools(c, pool, asJSON)
	}
	out := cmd.OutOrStdout()
	var last []byte // what was shown of the last answer
	for {
		screen := screenOf(out)
		inPlace := watch && !asJSON && screen.columns > 0
		shown, err := askFor(c, pool)
		var show bytes.Buffer
		switch {
		case err != nil && (!watch || last == nil):
			return err
		case err != nil && inPlace: // Caddy may come back
			screen.alarm(&show, fmt.Sprintf("this is how it was; at %s: %v", time.Now().Format(time.TimeOnly), err))
			show.Write(last)
		case err != nil:
			c.warn(err.Error())
		case asJSON:
			text := shown.text
			if notServing {
				if text, err = inTrouble(shown.rows, text); err != nil {
					return err
				}
			}
			last = printableJSON(text)
			show.Write(last)
		default:
			screen.writeStatus(&show, shown, notServing, time.Now())
			last = bytes.Clone(show.Bytes())
		}
		drawn := show.Bytes()
		if inPlace {
			drawn = append([]byte(clearScreen), screen.fit(drawn)...)
		}
		if _, err := out.Write(drawn); err != nil || !watch {
			return err
		}
		if c.pause(watchInterval) != nil {
			return nil
		}
	}
}

// listing is what Caddy lists.
type listing struct {
	rows  []view.Upstream
	pools []view.Pool
	text  []byte // the rows as they were answered
}

// askFor returns all pools and their upstreams, or those of one pool.
func askFor(c *client, pool string) (listing, error) {
	var query url.Values
	if pool != "" {
		query = url.Values{"pool": {pool}}
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
	return listing{rows, pools, text}, nil
}

// inTrouble returns the part of an answer that has the rows of upstreams in trouble.
func inTrouble(rows []view.Upstream, text []byte) ([]byte, error) {
	var all []json.RawMessage // with fields that this command may not know
	if err := json.Unmarshal(text, &all); err != nil {
		return nil, err
	}
	some := []json.RawMessage{}
	for i := range rows {
		if rows[i].InTrouble() {
			some = append(some, all[i])
		}
	}
	text, err := json.Marshal(some)
	return append(text, '\n'), err
}

// exitOutage is the exit status of status --check if no upstream of some pool serves.
const exitOutage = 3

// checkPools shows the pools in which no upstream serves, of all or of one. With JSON, the
// lines go to the standard error.
func checkPools(c *client, pool string, asJSON bool) error {
	shown, err := askFor(c, pool)
	if err != nil {
		return err
	}
	out := c.cmd.OutOrStdout()
	if asJSON {
		if _, err := out.Write(printableJSON(shown.text)); err != nil {
			return err
		}
		out = c.cmd.ErrOrStderr()
	}
	lines := view.Outages(shown.rows)
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
