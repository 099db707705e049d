// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"bytes"
	"context"
	"reflect"

	"github.com/spf13/cobra"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
)

// Command runs `caddy alive` with arguments, as Caddy's main function does, and returns
// what it prints.
func Command(ctx context.Context, address string, args ...string) (stdout, stderr string, err error) {
	return CommandLine(ctx, append(args, "--address", address)...)
}

// CommandLine runs `caddy alive` with exactly these arguments, and returns what it prints.
func CommandLine(ctx context.Context, args ...string) (stdout, stderr string, err error) {
	root := &cobra.Command{Use: "alive", SilenceUsage: true}
	caddycmd.Commands()["alive"].CobraFunc(root)
	var out, errs bytes.Buffer
	root.SetOut(&out)
	root.SetErr(&errs)
	root.SetArgs(args)
	err = root.ExecuteContext(ctx)
	return out.String(), errs.String(), err
}

// ExitStatus returns the status with which Caddy's main function exits.
func ExitStatus(err error) int {
	if err == nil {
		return 0
	}
	if v := reflect.Indirect(reflect.ValueOf(err)); v.Kind() == reflect.Struct {
		if code := v.FieldByName("ExitCode"); code.IsValid() { // its type is Caddy's own
			return int(code.Int())
		}
	}
	return 1
}
