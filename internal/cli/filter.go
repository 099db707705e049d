// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/caddy-alive/caddy-alive/internal/suggest"
	"github.com/caddy-alive/caddy-alive/internal/view"
)

// filter says which upstreams status shows. An empty field wants all.
type filter struct {
	pool, upstream string
	states         []string
	notServing     bool
}

// filterOf reads the filter from the flags.
func filterOf(cmd *cobra.Command) (f filter, err error) {
	f.pool, _ = cmd.Flags().GetString("pool")
	f.upstream, _ = cmd.Flags().GetString("upstream")
	f.notServing, _ = cmd.Flags().GetBool("not-serving")
	states, _ := cmd.Flags().GetStringSlice("state")
	for _, state := range states {
		state = strings.TrimSpace(state)
		if !slices.Contains(view.States, state) {
			return f, fmt.Errorf("--state takes %s, several of them with commas between; got '%s'%s",
				suggest.Enumerate(view.States), printable(state), suggest.DidYouMean(state, view.States))
		}
		f.states = append(f.states, state)
	}
	return f, nil
}

// wantsAll reports whether the filter leaves out no upstream of what Caddy lists. The pool is
// left to Caddy.
func (f filter) wantsAll() bool { return f.upstream == "" && len(f.states) == 0 && !f.notServing }

// wants reports whether an upstream is shown.
func (f filter) wants(row *view.Upstream) bool {
	return (f.upstream == "" || row.Upstream == f.upstream) &&
		(len(f.states) == 0 || slices.Contains(f.states, row.State())) &&
		(!f.notServing || row.InTrouble())
}

// rows returns the rows that are shown.
func (f filter) rows(all []view.Upstream) []view.Upstream {
	if f.wantsAll() {
		return all
	}
	return slices.DeleteFunc(slices.Clone(all), func(row view.Upstream) bool { return !f.wants(&row) })
}

// json returns the part of an answer that has the rows that are shown.
func (f filter) json(rows []view.Upstream, text []byte) ([]byte, error) {
	if f.wantsAll() {
		return text, nil
	}
	var all []json.RawMessage // with fields that this command may not know
	if err := json.Unmarshal(text, &all); err != nil {
		return nil, err
	}
	some := []json.RawMessage{}
	for i := range rows {
		if f.wants(&rows[i]) {
			some = append(some, all[i])
		}
	}
	text, err := json.Marshal(some)
	return append(text, '\n'), err
}

// validate returns an error if an upstream is wanted that is not listed.
func (f filter) validate(rows []view.Upstream) error {
	if f.upstream == "" || slices.ContainsFunc(rows, func(row view.Upstream) bool { return row.Upstream == f.upstream }) {
		return nil
	}
	known := make([]string, 0, len(rows))
	for i := range rows {
		known = append(known, rows[i].Upstream)
	}
	where := ""
	if f.pool != "" {
		where = " in the pool '" + f.pool + "'"
	}
	return fmt.Errorf("unknown upstream '%s'%s; caddy alive status lists all upstreams%s", printable(f.upstream), printable(where), printable(suggest.Upstream(f.upstream, known)))
}

// nothing says that no upstream is as wanted.
func (f filter) nothing() string {
	where := ""
	if f.pool != "" {
		where = " of the pool " + f.pool
	}
	if f.notServing && f.upstream == "" && len(f.states) == 0 {
		return printable("all upstreams" + where + " serve, and none is suspect or ejected")
	}
	var wanted []string
	if f.upstream != "" {
		wanted = append(wanted, "--upstream "+f.upstream)
	}
	if len(f.states) > 0 {
		wanted = append(wanted, "--state "+strings.Join(f.states, ","))
	}
	if f.notServing {
		wanted = append(wanted, "--not-serving")
	}
	return printable("no upstream" + where + " matches " + strings.Join(wanted, " "))
}
