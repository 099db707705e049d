// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"encoding/json"
	"slices"
	"strconv"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

// UnmarshalCaddyfile sets up the policy from Caddyfile tokens. Syntax:
//
//	lb_policy alive [<uri>] {
//		check <kind> [<args...>] {
//			interval      <duration>
//			fast_interval <duration>
//			down_interval <duration>
//			timeout       <duration>
//			passes        <number>
//			fails         <number>
//			jitter        <percent>
//			...
//		}
//		hold <duration>|off
//	}
//
// Given a URI, upstreams are checked by an HTTP request for it; without any
// check, by a TCP connection. The kinds of check and the options of each are
// those of the modules in alive.probes.
func (s *Selection) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // consume the policy's name
	kind := d.Token()
	inline := d.NextArg()
	if inline {
		// the same as a check block without options
		kind.Text = "http"
		raw, err := parseProbe(caddyfile.NewDispenser([]caddyfile.Token{kind, d.Token()}))
		if err != nil {
			return err
		}
		s.Checks = append(s.Checks, &HealthCheck{ProbeRaw: raw})
		if d.NextArg() {
			return d.Errf("lb_policy alive takes one URI at most; got '%s' too", d.Val())
		}
	}
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		switch d.Val() {
		case "check":
			if inline {
				return d.Err("a check block cannot stand beside a URI after lb_policy alive; write that as a check http <uri>, too")
			}
			check, err := parseCheck(d)
			if err != nil {
				return err
			}
			s.Checks = append(s.Checks, check)

		case "hold":
			if s.Hold != nil {
				return d.Err("option 'hold' is given twice")
			}
			s.Hold = new(caddy.Duration)
			if err := parseHold(d, s.Hold); err != nil {
				return err
			}

		default:
			return d.Errf("unrecognized option '%s': lb_policy alive has check and hold", d.Val())
		}
	}
	return nil
}

// parseHold reads the value of the option that d is at: a duration, or off.
func parseHold(d *caddyfile.Dispenser, hold *caddy.Duration) error {
	text, err := parseArg(d, "off, or one duration above 0, like 2s")
	if err != nil || text == "off" {
		return err
	}
	duration, err := caddy.ParseDuration(text)
	if err != nil || duration <= 0 {
		return d.Errf("hold must be off or a duration above 0, like 2s; got '%s'", text)
	}
	*hold = caddy.Duration(duration)
	return nil
}

// parseCheck reads the check that d is at. The options that all checks have in
// common are taken out; what remains is for the module of its kind.
func parseCheck(d *caddyfile.Dispenser) (*HealthCheck, error) {
	all := d.NextSegment()
	d = caddyfile.NewDispenser(all)
	d.Next() // consume "check"
	args := d.RemainingArgsAsTokens()
	if len(args) == 0 {
		return nil, d.Errf("check needs a kind: %s", knownKinds())
	}
	check := new(HealthCheck)
	var own []caddyfile.Token
	seen := make(map[string]bool)
	for d.NextBlock(0) {
		option := d.Val()
		common, err := check.unmarshalOption(d)
		if err != nil {
			return nil, err
		}
		if !common {
			own = append(own, d.NextSegment()...)
			continue
		}
		if seen[option] {
			return nil, d.Errf("option '%s' is given twice", option)
		}
		seen[option] = true
	}
	if _, err := check.resolve(); err != nil {
		d.Reset()
		d.Next() // what is wrong is the block, so point to its beginning
		return nil, d.WrapErr(err)
	}
	tokens := args
	if len(own) > 0 {
		opening, closing := all[1+len(args)], all[len(all)-1]
		tokens = slices.Concat(args, []caddyfile.Token{opening}, own, []caddyfile.Token{closing})
	}
	var err error
	check.ProbeRaw, err = parseProbe(caddyfile.NewDispenser(tokens))
	return check, err
}

// unmarshalOption reads the option that d is at, if it is one that all checks
// have in common.
func (c *HealthCheck) unmarshalOption(d *caddyfile.Dispenser) (common bool, err error) {
	switch d.Val() {
	case "interval":
		err = parsePositiveDuration(d, &c.Interval)
	case "fast_interval":
		err = parsePositiveDuration(d, &c.FastInterval)
	case "down_interval":
		err = parsePositiveDuration(d, &c.DownInterval)
	case "timeout":
		err = parsePositiveDuration(d, &c.Timeout)
	case "passes":
		err = parseCount(d, &c.Passes)
	case "fails":
		err = parseCount(d, &c.Fails)
	case "jitter":
		if c.Jitter, err = parseArg(d, "one percentage from 0% to 100%"); err != nil {
			return true, err
		}
		if _, invalid := parseJitter(c.Jitter); invalid != nil {
			err = d.WrapErr(invalid)
		}
	default:
		return false, nil
	}
	return true, err
}

// parseArg reads the one value of the option that d is at.
func parseArg(d *caddyfile.Dispenser, what string) (string, error) {
	option := d.Val()
	var text string
	if !d.AllArgs(&text) {
		return "", d.Errf("%s takes %s", option, what)
	}
	return text, nil
}

// parsePositiveDuration reads the value of the option that d is at.
func parsePositiveDuration(d *caddyfile.Dispenser, value *caddy.Duration) error {
	option := d.Val()
	text, err := parseArg(d, "one duration above 0, like 5s")
	if err != nil {
		return err
	}
	duration, err := caddy.ParseDuration(text)
	if err != nil || duration <= 0 {
		return d.Errf("%s must be a duration above 0, like 5s; got '%s'", option, text)
	}
	*value = caddy.Duration(duration)
	return nil
}

// parseCount reads the value of the option that d is at.
func parseCount(d *caddyfile.Dispenser, value *int) error {
	option := d.Val()
	text, err := parseArg(d, "one whole number from 1 on")
	if err != nil {
		return err
	}
	count, err := strconv.Atoi(text)
	if err != nil || count < 1 {
		return d.Errf("%s must be a whole number from 1 on; got '%s'", option, text)
	}
	*value = count
	return nil
}

// parseProbe has the module of the kind, the first token of d, read the rest.
func parseProbe(d *caddyfile.Dispenser) (json.RawMessage, error) {
	d.Next()
	kind := d.Val()
	id := "alive.probes." + kind
	if _, err := caddy.GetModule(id); err != nil {
		return nil, d.WrapErr(errUnknownKind(kind))
	}
	prober, err := caddyfile.UnmarshalModule(d, id)
	if err != nil {
		return nil, err
	}
	return caddyconfig.JSONModuleObject(prober, "kind", kind, nil), nil
}

// Interface guard
var _ caddyfile.Unmarshaler = (*Selection)(nil)
