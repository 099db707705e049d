// SPDX-License-Identifier: Apache-2.0

// Package grammar has what all blocks of a Caddyfile have in common: how they are read,
// and the errors for options that are given twice, are unknown or take no argument. It
// must not know any option. It has no state and no locks.
package grammar

import (
	"fmt"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

// ReadBlock reads a block, and calls read for each option, with d at it. Each option can
// be given once, except those that repeat. Without a block it does nothing.
func ReadBlock(d *caddyfile.Dispenser, read func(option string) error, repeats func(option string) bool) error {
	seen := make(map[string]bool)
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		option := d.Val()
		if seen[option] && (repeats == nil || !repeats(option)) {
			return d.WrapErr(OptionTwice(option))
		}
		seen[option] = true
		if err := read(option); err != nil {
			return err
		}
	}
	return nil
}

// GivenTwice returns the error for something that can be given once, such as "header
// Host", if it was given before.
func GivenTwice(what string) error { return fmt.Errorf("%s is given twice", what) }

// OptionTwice returns the error for an option that was given before.
func OptionTwice(option string) error { return GivenTwice("option '" + option + "'") }

// NoArg rejects further arguments on the line of d. What has none is an option, or
// described as in "a tcp check".
func NoArg(d *caddyfile.Dispenser, what string) error {
	if d.NextArg() {
		return d.Errf("%s takes no argument; got '%s'", what, d.Val())
	}
	return nil
}

// At adds the place of d to an error, if there is one.
func At(d *caddyfile.Dispenser, err error) error {
	if err == nil {
		return nil
	}
	return d.WrapErr(err)
}

// UnknownOptionError is the error for an option that a kind of check does not have.
type UnknownOptionError struct {
	Option  caddyfile.Token // where a Caddyfile has it
	message string
}

// ErrUnknownOption returns the error for the option that d is at, with its place.
func ErrUnknownOption(d *caddyfile.Dispenser, message string) error {
	return d.WrapErr(&UnknownOptionError{d.Token(), message})
}

// Error returns the message, which names the option and those that are allowed.
func (e *UnknownOptionError) Error() string { return e.message }
