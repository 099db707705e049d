// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/view"
)

// completeTimeout is how long Caddy may take to answer while a shell completes a line.
const completeTimeout = time.Second

// completion completes an argument or the value of a flag. It never fails: without an answer
// there is nothing to offer.
type completion = func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective)

// completeArgument completes the first argument, and each of the others with one of these words.
func completeArgument(first completion, words ...string) completion {
	return func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
		switch len(args) {
		case 0:
			return first(cmd, args, typed)
		case 1:
			return beginning(typed, words), cobra.ShellCompDirectiveNoFileComp
		default:
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
	}
}

// completeUpstream offers the upstreams for which a change to a mode has a meaning. The mode is
// empty if there is no change: that is all of them.
func completeUpstream(mode string) completion {
	return func(cmd *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
		c, _, err := findClient(cmd)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		query := make(url.Values)
		if pool, _ := cmd.Flags().GetString("pool"); pool != "" {
			query.Set("pool", pool)
		}
		rows, _, err := c.list(completeTimeout, query)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		about, names := make(map[string]string, len(rows)), []string(nil) // of the first pool
		for i := range rows {
			row := &rows[i]
			if mode == settings.Ready && row.Mode == settings.Ready && !row.Gone {
				continue
			}
			if _, known := about[row.Upstream]; !known {
				about[row.Upstream] = row.State()
				names = append(names, row.Upstream)
			}
		}
		return offer(cmd, typed, names, about), cobra.ShellCompDirectiveNoFileComp
	}
}

// completePool offers the pools.
func completePool(cmd *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
	c, _, err := findClient(cmd)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	pools, err := c.pools(completeTimeout, nil)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	about, names := make(map[string]string, len(pools)), make([]string, 0, len(pools))
	for i := range pools {
		names = append(names, pools[i].Pool)
		about[pools[i].Pool] = pools[i].Facts()[0]
	}
	return offer(cmd, typed, names, about), cobra.ShellCompDirectiveNoFileComp
}

// completeState offers states, also after a comma.
func completeState(_ *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
	begun := typed[:strings.LastIndex(typed, ",")+1]
	states := make([]string, 0, len(view.States))
	for _, state := range view.States {
		states = append(states, begun+state)
	}
	return beginning(typed, states), cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
}

// beginning returns the words that begin as what is typed.
func beginning(typed string, words []string) (offered []string) {
	for _, word := range words {
		if strings.HasPrefix(word, typed) {
			offered = append(offered, word)
		}
	}
	return offered
}

// offer returns the names that begin as what is typed, each with what is to say about it. Names
// that a shell would not take as they are written are left out: the script that Caddy makes for
// bash lets bash expand all that is offered, and bash separates words at spaces.
func offer(cmd *cobra.Command, typed string, names []string, about map[string]string) (offered []string) {
	unsafe := "\"'`$\\{}()<>|&;~*?!#^"
	if isBash(cmd) {
		unsafe += " "
	}
	for _, name := range beginning(typed, names) {
		if printable(name) == name && !strings.ContainsAny(name, unsafe) {
			offered = append(offered, cobra.CompletionWithDesc(name, about[name]))
		}
	}
	return offered
}

// isBash reports whether the script that Caddy makes for bash asks, which is the only one that
// wants no descriptions.
func isBash(cmd *cobra.Command) bool {
	return slices.ContainsFunc(cmd.Root().Commands(), func(c *cobra.Command) bool {
		return c.Name() == cobra.ShellCompRequestCmd && c.CalledAs() == cobra.ShellCompNoDescRequestCmd
	})
}

// completeFlag completes the value of a flag that the command has.
func completeFlag(cmd *cobra.Command, flag string, values completion) {
	if err := cmd.RegisterFlagCompletionFunc(flag, values); err != nil {
		panic(err) // the flag does not exist, or is registered already
	}
}
