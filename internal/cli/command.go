// SPDX-License-Identifier: Apache-2.0

// Package cli is the command caddy alive, which it registers. It asks the admin API of
// a running Caddy and shows the rows of package view. It knows the answers of that API,
// and nothing of how a Caddy balances. It has no locks.
package cli

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	"github.com/caddy-alive/caddy-alive/internal/limits"
	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/suggest"
	"github.com/caddy-alive/caddy-alive/internal/view"
)

func init() {
	caddycmd.RegisterCommand(caddycmd.Command{
		Name:  "alive",
		Short: "Shows and changes the upstreams that lb_policy alive balances over",
		Long: `
Shows the upstreams of a running Caddy, and why each of them gets requests or none. Sets
their modes (ready, drain and maintenance) and their weights, and checks them at once. Shows
the members of a fleet.
The commands use the admin API: at --address, otherwise at the address in the --config
file, otherwise at that of a Caddyfile in the current folder, otherwise at localhost:2019.`,
		CobraFunc: addCommands,
	})
}

// orReset is what can stand for a weight.
const orReset = "or reset"

// oneUpstream is what the commands that take an upstream want.
const oneUpstream = "one upstream, as caddy alive status shows it"

// commandNames are the commands, in the order in which they are documented.
var commandNames = []string{"status", settings.Ready, settings.Drain, settings.Maintenance, "weight", "check", "fleet"}

// addCommands adds the commands of `caddy alive`.
func addCommands(root *cobra.Command) {
	root.PersistentFlags().StringP("config", "c", "", "Configuration file to use to parse the admin address, if --address is not used")
	root.PersistentFlags().StringP("adapter", "a", "", "Name of config adapter to apply (when --config is used)")
	root.PersistentFlags().String("address", "", "The address to use to reach the admin API endpoint, if not the default")
	root.Args = func(_ *cobra.Command, args []string) error {
		if len(args) > 0 {
			return fmt.Errorf("unknown command %q: there are %s%s", args[0], suggest.Enumerate(commandNames), suggest.DidYouMean(args[0], commandNames))
		}
		return nil
	}
	root.ValidArgsFunction = cobra.NoFileCompletions
	root.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	root.AddCommand(
		statusCommand(),
		modeCommand(settings.Ready, "Ends drain and maintenance of an upstream"),
		modeCommand(settings.Drain, "Stops new requests to an upstream while another one serves"),
		modeCommand(settings.Maintenance, "Stops all requests and probes of an upstream"),
		weightCommand(),
		checkCommand(),
		fleetCommand(),
	)
}

func statusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "status [--watch|--check] [--pool <name>] [--upstream <upstream>] [--state <states>] [--not-serving] [--all] [--json]", Short: "Shows all upstreams by pool, what is wrong first",
		Args: exactly(0, "no arguments"), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error { return runStatus(cmd) },
	}
	cmd.Flags().BoolP("watch", "w", false, "Show the upstreams again each second, until interrupted")
	cmd.Flags().Bool("json", false, "Print JSON, for scripts")
	cmd.Flags().Bool("check", false, "Show one line for each pool in which no upstream serves. Exit with 3 if there is one.")
	cmd.Flags().String("pool", "", "Show only the pool of this name")
	cmd.Flags().String("upstream", "", "Show only this upstream, in all of its pools")
	cmd.Flags().StringSlice("state", nil, "Show only upstreams in these states: "+strings.Join(view.States, ", "))
	cmd.Flags().Bool("not-serving", false, "Show only upstreams that do not serve, or are suspect or ejected")
	cmd.Flags().Bool("all", false, "Show all upstreams with their reasons, also if they do not fit the terminal")
	cmd.MarkFlagsMutuallyExclusive("watch", "check")
	for _, flag := range []string{"not-serving", "state", "upstream", "all"} {
		cmd.MarkFlagsMutuallyExclusive(flag, "check")
	}
	cmd.MarkFlagsMutuallyExclusive("json", "all")
	completeFlag(cmd, "pool", completePool)
	completeFlag(cmd, "upstream", completeUpstream(""))
	completeFlag(cmd, "state", completeState)
	return cmd
}

func modeCommand(mode, short string) *cobra.Command {
	cmd := &cobra.Command{
		Use: mode + " <upstream> [--wait <duration>]", Short: short, Args: exactly(1, oneUpstream),
		ValidArgsFunction: completeArgument(completeUpstream(mode)),
		RunE:              func(cmd *cobra.Command, args []string) error { return runMode(cmd, args[0], mode) },
	}
	until := "no request is in flight and no new ones come, at any member of a fleet"
	if mode == settings.Ready {
		until = "no request is in flight"
	} else {
		cmd.Use += " [--ignore-lost]"
		cmd.Flags().Bool("ignore-lost", false, "With --wait in a fleet, do not wait for members that are lost. They may still send requests.")
	}
	cmd.Flags().Duration("wait", 0, "Wait at most this long until "+until+". Exit with 1 if that takes longer.")
	if mode == settings.Drain {
		cmd.Use += " [--rebind]"
		cmd.Flags().Bool("rebind", false, "Move clients that are bound to the upstream, by sticky or select cookie, to others. Without it, their requests go on.")
	}
	return cmd
}

func weightCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "weight <upstream> <n|reset> [--pool <name>]", Short: "Sets the weight of an upstream, or resets it to the weight of the config",
		Args:              exactly(2, "an upstream, and a whole number or reset"),
		ValidArgsFunction: completeArgument(completeUpstream(""), "reset"),
		RunE:              func(cmd *cobra.Command, args []string) error { return runWeight(cmd, args[0], args[1]) },
	}
	cmd.Flags().String("pool", "", "The pool for which the weight is set. Required if several pools have the upstream.")
	completeFlag(cmd, "pool", completePool)
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		var unknown interface{ GetSpecifiedShortnames() string }
		if errors.As(err, &unknown) { // a negative number was parsed as a flag
			if _, notNumber := strconv.Atoi(unknown.GetSpecifiedShortnames()); notNumber == nil {
				return limits.ErrWeight("-"+unknown.GetSpecifiedShortnames(), orReset)
			}
		}
		return err
	})
	return cmd
}

func checkCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "check <upstream> [--wait <duration>]", Short: "Checks an upstream at once. Exits with 1 unless it passes and is up",
		Args:              exactly(1, oneUpstream),
		ValidArgsFunction: completeArgument(completeUpstream("")),
		RunE:              func(cmd *cobra.Command, args []string) error { return runCheck(cmd, args[0]) },
	}
	cmd.Flags().Duration("wait", 0, "Check each second until the upstream is up, at most this long")
	return cmd
}

func fleetCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "fleet [--upstream <upstream>] [--json]", Short: "Shows the members of the fleet, and which upstreams are not up there",
		Args: exactly(0, "no arguments"), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error { return runFleet(cmd) },
	}
	cmd.Flags().String("upstream", "", "Show only this upstream, and what each member says of a wait for it")
	completeFlag(cmd, "upstream", completeUpstream(""))
	cmd.Flags().Bool("json", false, "Print JSON, for scripts")
	return cmd
}

// waitFlag returns the value of --wait.
func waitFlag(cmd *cobra.Command) (time.Duration, error) {
	wait, _ := cmd.Flags().GetDuration("wait")
	if wait < 0 {
		return 0, errors.New("--wait must not be below 0")
	}
	return wait, nil
}

// exactly accepts n arguments.
func exactly(n int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != n {
			return fmt.Errorf("caddy alive %s takes %s", cmd.Name(), what)
		}
		return nil
	}
}
