// SPDX-License-Identifier: Apache-2.0

// Package cli is the command caddy alive, which it registers. It asks the admin API of
// a running Caddy, and shows the rows of package view. It knows nothing of the Caddy
// that balances: all it has is the API's answers. It has no locks.
package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	"github.com/caddy-alive/caddy-alive/internal/limits"
	"github.com/caddy-alive/caddy-alive/internal/view"
)

func init() {
	caddycmd.RegisterCommand(caddycmd.Command{
		Name:  "alive",
		Short: "Shows and changes the upstreams that lb_policy alive balances over",
		Long: `
Shows the upstreams of a running Caddy as lb_policy alive sees them, and why each gets
requests or none; puts them into the modes ready, drain and maintenance; changes their
weights; checks them at once. It asks the admin API, whose address can be given with
--address, or by the --config that has it.`,
		CobraFunc: addCommands,
	})
}

// The modes of an upstream.
const (
	ready       = "ready"
	drain       = "drain"
	maintenance = "maintenance"
)

const (
	watchInterval = time.Second            // between two looks of status --watch
	waitInterval  = 200 * time.Millisecond // between two looks of --wait
	checkInterval = time.Second            // between two checks of check --wait
)

// addCommands adds the commands of `caddy alive`.
func addCommands(root *cobra.Command) {
	root.PersistentFlags().StringP("config", "c", "", "Configuration file to use to parse the admin address, if --address is not used")
	root.PersistentFlags().StringP("adapter", "a", "", "Name of config adapter to apply (when --config is used)")
	root.PersistentFlags().String("address", "", "The address to use to reach the admin API endpoint, if not the default")
	root.Args = func(_ *cobra.Command, args []string) error {
		if len(args) > 0 {
			return fmt.Errorf("unknown command %q: there are status, ready, drain, maintenance, weight and check", args[0])
		}
		return nil
	}
	root.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }

	status := &cobra.Command{
		Use: "status [--watch|--check] [--json]", Short: "Shows all upstreams by pool", Args: exactly(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmdStatus(cmd) },
	}
	status.Flags().BoolP("watch", "w", false, "Show it again every second, until interrupted")
	status.Flags().Bool("json", false, "Print JSON, for scripts")
	status.Flags().Bool("check", false, "Show only the pools in which no upstream serves, in a line each; exit status 3 if there are any")
	status.MarkFlagsMutuallyExclusive("watch", "check")
	root.AddCommand(status)

	for _, m := range []struct {
		mode  string
		short string
	}{
		{ready, "Has an upstream get requests while it is alive"},
		{drain, "Has an upstream get no new requests while another one serves"},
		{maintenance, "Has an upstream get no requests and no probes"},
	} {
		cmd := &cobra.Command{
			Use: m.mode + " <upstream> [--wait <duration>]", Short: m.short, Args: exactly(1, "one upstream, as caddy alive status shows it"),
			RunE: func(cmd *cobra.Command, args []string) error { return cmdMode(cmd, args[0], m.mode) },
		}
		cmd.Flags().Duration("wait", 0, "How long to wait until its requests in flight have ended, and it gets no new ones unless it is ready; exit status 1 if that takes longer")
		root.AddCommand(cmd)
	}

	weight := &cobra.Command{
		Use: "weight <upstream> <n|reset> [--pool <name>]", Short: "Sets the weight of an upstream, or resets it to that of the config",
		Args: exactly(2, "an upstream, and a whole number or reset"),
		RunE: func(cmd *cobra.Command, args []string) error { return cmdWeight(cmd, args[0], args[1]) },
	}
	weight.Flags().String("pool", "", "The pool whose weight is meant, if several have the upstream")
	weight.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		if number := negative.FindString(err.Error()); number != "" {
			return errWeight(number) // it was taken for a flag
		}
		return err
	})
	root.AddCommand(weight)

	check := &cobra.Command{
		Use: "check <upstream> [--wait <duration>]", Short: "Checks an upstream at once; exit status 1 unless it passes and is up",
		Args: exactly(1, "one upstream, as caddy alive status shows it"),
		RunE: func(cmd *cobra.Command, args []string) error { return cmdCheck(cmd, args[0]) },
	}
	check.Flags().Duration("wait", 0, "How long to go on checking it each second until it is up")
	root.AddCommand(check)
}

// negative is a number that flags are not made for.
var negative = regexp.MustCompile(`-\d+$`)

func errWeight(got string) error {
	return fmt.Errorf("the weight must be %s, or reset; got %q", limits.WeightRange, got)
}

// waitOf returns the flag of that name.
func waitOf(cmd *cobra.Command) (time.Duration, error) {
	wait, _ := cmd.Flags().GetDuration("wait")
	if wait < 0 {
		return 0, errors.New("--wait must not be below 0")
	}
	return wait, nil
}

// exactly wants so many arguments.
func exactly(n int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != n {
			return fmt.Errorf("caddy alive %s takes %s", cmd.Name(), what)
		}
		return nil
	}
}

// cmdStatus shows the upstreams, once or until interrupted.
func cmdStatus(cmd *cobra.Command) error {
	watch, _ := cmd.Flags().GetBool("watch")
	check, _ := cmd.Flags().GetBool("check")
	asJSON, _ := cmd.Flags().GetBool("json")
	c, err := newClient(cmd)
	if err != nil {
		return err
	}
	if check {
		return c.checkPools(asJSON)
	}
	out := cmd.OutOrStdout()
	var last []byte // what the last answer showed
	for {
		screen := screenOf(out)
		inPlace := watch && !asJSON && screen.columns > 0
		entries, text, err := c.list(askTimeout, nil)
		var show bytes.Buffer
		switch {
		case err != nil && (!watch || last == nil):
			return err
		case err != nil && inPlace: // it may return
			screen.alarm(&show, fmt.Sprintf("this is how it was; at %s: %v", time.Now().Format(time.TimeOnly), err))
			show.Write(last)
		case err != nil:
			c.warn(err.Error())
		case asJSON:
			last = printableJSON(text)
			show.Write(last)
		default:
			screen.writeTable(&show, entries, time.Now())
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

// exitOutage is the exit status of status --check when a pool serves nothing.
const exitOutage = 3

// checkPools shows the pools in which no upstream serves. With JSON on the standard
// output, the lines go where warnings do.
func (c *client) checkPools(asJSON bool) error {
	entries, text, err := c.list(askTimeout, nil)
	if err != nil {
		return err
	}
	out := c.cmd.OutOrStdout()
	if asJSON {
		if _, err := out.Write(printableJSON(text)); err != nil {
			return err
		}
		out = c.cmd.ErrOrStderr()
	}
	lines := view.Outages(entries)
	for _, line := range lines {
		if _, err := fmt.Fprintln(out, printable(line)); err != nil {
			return err
		}
	}
	if len(lines) == 0 {
		return nil
	}
	c.cmd.SilenceErrors = true // the lines say it
	exit := func(caddycmd.Flags) (int, error) { return exitOutage, nil }
	return caddycmd.WrapCommandFuncForCobra(exit)(c.cmd, nil)
}

// cmdMode sets the mode of an upstream, and waits until it is done with its requests
// if that is wanted.
func cmdMode(cmd *cobra.Command, upstream, m string) error {
	wait, err := waitOf(cmd)
	if err != nil {
		return err
	}
	c, err := newClient(cmd)
	if err != nil {
		return err
	}
	limit := askTimeout
	if wait > 0 {
		limit = within(time.Now().Add(wait))
	}
	entries, err := c.patch(limit, upstream, "", map[string]any{"mode": m})
	if err != nil {
		return err
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", printable(upstream), m)
	if m == maintenance {
		c.warnOfOutages(limit, entries)
	}
	if wait > 0 {
		return c.waitUntilIdle(upstream, m, wait)
	}
	if still := stillGets(entries); m == drain && still != "" {
		c.warn(still)
	}
	return nil
}

// stillGets says in which pools an upstream that is to get none gets new requests,
// empty if there is none.
func stillGets(entries []view.Upstream) string {
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

// maxWarned bounds how many pools are asked for, for warnings.
const maxWarned = 10

// warnOfOutages warns of the pools of these entries in which no upstream serves now.
// What was asked for is done, whatever comes of that.
func (c *client) warnOfOutages(limit time.Duration, changed []view.Upstream) {
	var pools []string
	for _, e := range changed {
		if !e.Gone && !slices.Contains(pools, e.Pool) {
			pools = append(pools, e.Pool)
		}
	}
	for _, pool := range pools[:min(len(pools), maxWarned)] {
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
// unless it is ready.
func (c *client) waitUntilIdle(upstream, m string, wait time.Duration) error {
	name := printable(upstream)
	deadline := time.Now().Add(wait)
	fleet, every, err := c.fleet(within(deadline))
	if err != nil {
		return err
	}
	// A request may have been about to go there just when that changed; and others of
	// a fleet are yet to learn of it.
	quiet := time.Now().Add(every)
	for {
		if err := c.pause(max(0, min(waitInterval, time.Until(deadline)))); err != nil {
			return err
		}
		entries, _, err := c.list(within(deadline), url.Values{"upstream": {upstream}})
		if err != nil {
			return err
		}
		entries = slices.DeleteFunc(entries, func(e view.Upstream) bool { return e.Gone })
		if len(entries) == 0 {
			return fmt.Errorf("%s: no pool has it any more, so it is not known what is in flight", name)
		}
		var left string
		still := stillGets(entries)
		switch n := inFlight(entries); {
		case n > 0:
			left = fmt.Sprintf("requests in flight: %d", n)
		case m != ready && still != "":
			left = still
		case time.Now().Before(quiet):
			left = fmt.Sprintf("the others of the fleet %s may not know yet: they look every %s", fleet, every)
		case fleet != "":
			fmt.Fprintf(c.cmd.OutOrStdout(), "%s: nothing is in flight at this Caddy; ask each of the fleet %s, by --address\n", name, fleet)
			return nil
		default:
			fmt.Fprintf(c.cmd.OutOrStdout(), "%s: nothing is in flight\n", name)
			return nil
		}
		if !time.Now().Before(deadline) {
			return fmt.Errorf("%s: after %s, %s", name, wait, left)
		}
	}
}

// inFlight returns the requests in flight to an upstream. Caddy counts them by
// address, so each pool that has it shows them all.
func inFlight(entries []view.Upstream) (most int) {
	for _, e := range entries {
		most = max(most, e.Requests)
	}
	return most
}

// cmdWeight sets a weight, or resets it.
func cmdWeight(cmd *cobra.Command, upstream, text string) error {
	var weight any
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

// cmdCheck has an upstream checked, once or until it is up, and says what came of it.
func cmdCheck(cmd *cobra.Command, upstream string) error {
	wait, err := waitOf(cmd)
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
		case slices.ContainsFunc(entries, func(e view.Upstream) bool { return e.Mode != maintenance && e.Status != "up" }):
			err = fmt.Errorf("%s passes, but is %s until it did so more often in a row", printable(upstream), printable(entries[0].Status))
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

// writeResults writes what came of each check, and reports whether any failed.
func writeResults(out io.Writer, entries []view.Upstream) (failed bool) {
	told := make(map[string]bool)
	for _, e := range entries {
		for _, c := range e.Checks {
			if c.Last == nil || told[c.Check] {
				continue
			}
			told[c.Check] = true
			verdict := "passed"
			if !c.Last.Passed {
				failed, verdict = true, "failed: "+c.Last.Reason
			}
			fmt.Fprintf(out, "%s  %s  %g ms  %s\n", printable(e.Upstream), printable(c.Check), c.Last.DurationMS, printable(verdict))
		}
	}
	return failed
}
