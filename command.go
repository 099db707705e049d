// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	"github.com/caddyserver/caddy/v2"
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

const (
	watchInterval = time.Second
	waitInterval  = 200 * time.Millisecond
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
		Use: "status [--watch] [--json]", Short: "Shows all upstreams by pool", Args: exactly(0, "no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmdStatus(cmd) },
	}
	status.Flags().BoolP("watch", "w", false, "Show it again every second, until interrupted")
	status.Flags().Bool("json", false, "Print JSON, for scripts")
	root.AddCommand(status)

	for _, m := range []struct {
		mode  mode
		short string
	}{
		{modeReady, "Has an upstream get requests while it is alive"},
		{modeDrain, "Has an upstream get no new requests while anybody else serves"},
		{modeMaintenance, "Has an upstream get no requests and no probes"},
	} {
		cmd := &cobra.Command{
			Use: string(m.mode) + " <upstream> [--wait <duration>]", Short: m.short, Args: exactly(1, "one upstream, as caddy alive status shows it"),
			RunE: func(cmd *cobra.Command, args []string) error { return cmdMode(cmd, args[0], m.mode) },
		}
		cmd.Flags().Duration("wait", 0, "How long to wait until its requests in flight have ended; exit status 1 if they have not")
		root.AddCommand(cmd)
	}

	weight := &cobra.Command{
		Use: "weight <upstream> <n|reset> [--pool <name>]", Short: "Sets the weight of an upstream, or resets it to that of the config",
		Args: exactly(2, "an upstream, and a whole number or reset"),
		RunE: func(cmd *cobra.Command, args []string) error { return cmdWeight(cmd, args[0], args[1]) },
	}
	weight.Flags().String("pool", "", "The pool whose weight is meant, if several have the upstream")
	root.AddCommand(weight)

	root.AddCommand(&cobra.Command{
		Use: "check <upstream>", Short: "Checks an upstream at once; exit status 1 if a check fails",
		Args: exactly(1, "one upstream, as caddy alive status shows it"),
		RunE: func(cmd *cobra.Command, args []string) error { return cmdCheck(cmd, args[0]) },
	})
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
	asJSON, _ := cmd.Flags().GetBool("json")
	out := cmd.OutOrStdout()
	for {
		text, err := askAdmin(cmd, http.MethodGet, "/alive/upstreams", nil, nil)
		if err != nil {
			return err
		}
		var shown bytes.Buffer
		if asJSON {
			shown.Write(text)
		} else {
			entries, err := parseEntries(text)
			if err != nil {
				return err
			}
			width, colours := terminal(out)
			if watch && width > 0 {
				shown.WriteString("\x1b[H\x1b[2J") // home, and clear
			}
			writeTable(&shown, entries, width, colours, time.Now())
		}
		if _, err := out.Write(shown.Bytes()); err != nil || !watch {
			return err
		}
		select {
		case <-cmd.Context().Done():
			return nil
		case <-time.After(watchInterval):
		}
	}
}

// terminal returns the width of the terminal that out is, 0 if it is none, and
// whether to use colours on it.
func terminal(out io.Writer) (width int, colours bool) {
	file, ok := out.(*os.File)
	if !ok || !term.IsTerminal(int(file.Fd())) {
		return 0, false
	}
	width, _, err := term.GetSize(int(file.Fd()))
	if err != nil || width <= 0 {
		width = 80
	}
	return width, os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

// cmdMode sets the mode of an upstream, and waits until it has no requests in flight
// if that is wanted.
func cmdMode(cmd *cobra.Command, upstream string, m mode) error {
	wait, _ := cmd.Flags().GetDuration("wait")
	if wait < 0 {
		return errors.New("--wait must not be below 0")
	}
	entries, err := patchUpstream(cmd, upstream, "", map[string]any{"mode": m})
	if err != nil {
		return err
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", printable(upstream), m)
	if wait == 0 {
		return nil
	}
	began := time.Now()
	for {
		left := inFlight(entries)
		if left == 0 {
			fmt.Fprintf(cmd.OutOrStdout(), "%s: nothing is in flight\n", printable(upstream))
			return nil
		}
		remaining := wait - time.Since(began)
		if remaining <= 0 {
			return fmt.Errorf("%s: after %s, requests in flight: %d", printable(upstream), wait, left)
		}
		select {
		case <-cmd.Context().Done():
			return cmd.Context().Err()
		case <-time.After(min(waitInterval, remaining)):
		}
		text, err := askAdmin(cmd, http.MethodGet, "/alive/upstreams", url.Values{"upstream": {upstream}}, nil)
		if err != nil {
			return err
		}
		if entries, err = parseEntries(text); err != nil {
			return err
		}
	}
}

// inFlight returns the requests in flight to an upstream. Caddy counts them by
// address, so each pool that has it shows them all.
func inFlight(entries []entry) (most int) {
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
			return fmt.Errorf("the weight must be a whole number from 0 to %d, or reset; got %q", maxWeight, text)
		}
		weight = n
	}
	pool, _ := cmd.Flags().GetString("pool")
	entries, err := patchUpstream(cmd, upstream, pool, map[string]any{"weight": weight})
	for _, e := range entries {
		fmt.Fprintf(cmd.OutOrStdout(), "%s: weight %d in the pool %s\n", printable(e.Upstream), e.Weight, printable(e.Pool))
	}
	return err
}

// cmdCheck has an upstream checked, and says what came of it.
func cmdCheck(cmd *cobra.Command, upstream string) error {
	text, err := askAdmin(cmd, http.MethodPost, "/alive/check", url.Values{"upstream": {upstream}}, nil)
	if err != nil {
		return err
	}
	entries, err := parseEntries(text)
	if err != nil {
		return err
	}
	failed := false
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
			fmt.Fprintf(cmd.OutOrStdout(), "%s  %s  %g ms  %s\n", printable(e.Upstream), printable(c.Check), c.Last.DurationMS, printable(verdict))
		}
	}
	if failed {
		return fmt.Errorf("%s does not pass", printable(upstream))
	}
	return nil
}

// patchUpstream changes an upstream, and warns if that could not be stored.
func patchUpstream(cmd *cobra.Command, upstream, pool string, change map[string]any) ([]entry, error) {
	query := url.Values{"upstream": {upstream}}
	if pool != "" {
		query.Set("pool", pool)
	}
	body, err := json.Marshal(change)
	if err != nil {
		return nil, err
	}
	text, err := askAdmin(cmd, http.MethodPatch, "/alive/upstreams", query, body)
	if err != nil {
		return nil, err
	}
	entries, err := parseEntries(text)
	for _, e := range entries {
		if e.Persisted != nil && !*e.Persisted {
			fmt.Fprintln(cmd.ErrOrStderr(), "warning: it holds at this instance, but could not be stored; it will be when the storage works again")
			break
		}
	}
	return entries, err
}

func parseEntries(text []byte) ([]entry, error) {
	var entries []entry
	if err := json.Unmarshal(text, &entries); err != nil {
		return nil, fmt.Errorf("this is no answer of Caddy's admin API: %v", err)
	}
	return entries, nil
}

// maxAnswer bounds what is read of an answer, in bytes.
const maxAnswer = 256 << 20

// askAdmin asks the admin API of the Caddy that the flags name.
func askAdmin(cmd *cobra.Command, method, path string, query url.Values, body []byte) ([]byte, error) {
	address, _ := cmd.Flags().GetString("address")
	config, _ := cmd.Flags().GetString("config")
	adapter, _ := cmd.Flags().GetString("adapter")
	admin, err := caddycmd.DetermineAdminAPIAddress(address, nil, config, adapter)
	if err != nil {
		return nil, fmt.Errorf("finding out the address of the admin API: %v", err)
	}
	if len(query) > 0 {
		path += "?" + query.Encode()
	}
	var reader io.Reader
	if body != nil {
		reader = bytes.NewReader(body)
	}
	response, err := caddycmd.AdminAPIRequest(admin, method, path, nil, reader)
	if err != nil {
		return nil, explain(admin, err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("reading the answer of Caddy at %s: %v", admin, err)
	}
	return text, nil
}

// errorAnswer is how AdminAPIRequest words an answer that is an error.
var errorAnswer = regexp.MustCompile(`(?s)HTTP (\d+): (.*)$`)

// explain says in one line what is wrong.
func explain(admin string, err error) error {
	match := errorAnswer.FindStringSubmatch(err.Error())
	if match == nil {
		return fmt.Errorf("cannot reach Caddy at %s: is it running, and is its admin API there? %s", admin, printable(err.Error()))
	}
	var answer struct {
		Error string `json:"error"`
	}
	_ = json.Unmarshal([]byte(match[2]), &answer) // else it is empty
	switch {
	case match[1] == strconv.Itoa(http.StatusNotFound) && !ours.MatchString(answer.Error):
		return fmt.Errorf("the Caddy at %s has no %s: it is a build without this plugin, or no Caddy", admin, caddy.ModuleID("admin.api.alive"))
	case answer.Error == "":
		return fmt.Errorf("the server at %s answers with the status %s", admin, match[1])
	}
	return errors.New(printable(answer.Error))
}

// ours is what the admin API says itself where it answers 404.
var ours = regexp.MustCompile(`^(unknown upstream|no pool has)`)
