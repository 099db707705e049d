// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-alive/caddy-alive/internal/limits"
	"github.com/caddy-alive/caddy-alive/internal/suggest"
	"github.com/caddy-alive/caddy-alive/probe"
)

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
	fresh := false // fresh_connection is given
	err := probe.ReadBlock(d, func(option string) error {
		common := isCommon(option)
		if common {
			if err := check.unmarshalOption(d, option); err != nil {
				return err
			}
		}
		if fresh = fresh || option == "fresh_connection"; fresh && check.KeepConnection {
			return d.WrapErr(errKeepFresh)
		}
		if !common {
			own = append(own, d.NextSegment()...)
		}
		return nil
	}, func(option string) bool { return !isCommon(option) }) // its kind knows which of its own repeat
	if err != nil {
		return nil, err
	}
	invalid := check.validateOptions()
	if invalid == nil && check.KeepConnection {
		invalid = checkKeeps(args[0].Text)
	}
	if invalid != nil {
		d.Reset()
		d.Next() // what is wrong is the block, so point to its beginning
		return nil, d.WrapErr(invalid)
	}
	tokens := args
	if len(own) > 0 {
		opening, closing := all[1+len(args)], all[len(all)-1]
		tokens = slices.Concat(args, []caddyfile.Token{opening}, own, []caddyfile.Token{closing})
	}
	if check.ProbeRaw, err = parseProbe(caddyfile.NewDispenser(tokens)); err != nil {
		return nil, explainOption(err, own)
	}
	if _, check.resolved.Identity, err = identify(check.ProbeRaw); err != nil {
		return nil, err
	}
	check.resolved.Settings, err = check.resolve()
	return check, err
}

// validateOptions reports what is wrong with the options that all checks have in
// common, as far as they are known before placeholders are replaced.
func (c *HealthCheck) validateOptions() error {
	if c.Address != "" && !strings.Contains(c.Address, "{") {
		addr, err := parseProbeAddress(c.Address)
		if err != nil {
			return err
		}
		if err := c.checkPort(addr); err != nil {
			return err
		}
	}
	_, err := c.resolve()
	return err
}

// isCommon reports whether an option is one that all checks have in common.
func isCommon(option string) bool { return slices.Contains(suggest.CheckOptions, option) }

// aDuration is what options take whose value is a duration.
const aDuration = "one duration above 0, like 5s"

// checkArgs is what options take that all checks have in common.
var checkArgs = map[string]string{
	"interval": aDuration, "fast_interval": aDuration, "down_interval": aDuration, "timeout": aDuration,
	"passes": "one whole number from 1 on", "fails": "one whole number from 1 on",
	"jitter": "one percentage from 0% to 100%", "port": "one port, like 8081",
	"address": "one address, like 127.0.0.1:8081", "proxy_protocol": "off, v1 or v2",
}

// unmarshalOption reads the option that d is at, one that all checks have in common.
func (c *HealthCheck) unmarshalOption(d *caddyfile.Dispenser, option string) (err error) {
	switch option {
	case "name":
		c.Name, err = parseName(d, "a label, like web")
		return err
	case "keep_connection":
		if c.KeepConnection = true; d.NextArg() {
			return d.Errf("keep_connection takes no argument; got '%s'", d.Val())
		}
		return nil
	}
	text, err := parseArg(d, checkArgs[option])
	if err != nil {
		return err
	}
	duration := func(value *caddy.Duration, shortest time.Duration) error {
		parsed, err := limits.ParseDuration(option, text, "a duration above 0, like 5s", shortest, limits.MaxDuration)
		*value = caddy.Duration(parsed)
		return err
	}
	switch option {
	case "interval":
		err = duration(&c.Interval, limits.MinInterval)
	case "fast_interval":
		err = duration(&c.FastInterval, limits.MinInterval)
	case "down_interval":
		err = duration(&c.DownInterval, limits.MinInterval)
	case "timeout":
		err = duration(&c.Timeout, limits.MinTimeout)
	case "passes":
		c.Passes, err = limits.ParseCount(option, text)
	case "fails":
		c.Fails, err = limits.ParseCount(option, text)
	case "jitter":
		c.Jitter = text
		_, err = limits.Percent(option, text)
	case "port":
		c.Port, err = limits.Port(text)
	case "address":
		c.Address = text
		if _, invalid := parseProbeAddress(text); !strings.Contains(text, "{") {
			err = invalid
		}
	case "proxy_protocol":
		c.ProxyProtocol = text
		err = limits.ProxyProtocol(text)
	}
	return at(d, err)
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

// explainOption replaces the error of a kind of check that does not know an option, where
// it is known where that option belongs. The tokens are the options that the kind
// was given.
func explainOption(err error, options []caddyfile.Token) error {
	for i, token := range options {
		if i > 0 && options[i-1].File == token.File && options[i-1].Line == token.Line {
			continue // not the first of its line
		}
		if !strings.HasPrefix(err.Error(), "unrecognized option '"+token.Text+"'") {
			continue
		}
		if hint := suggest.InCheck(token.Text); hint != "" {
			return errAt(token, "%s", hint)
		}
	}
	return err
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

// parseName reads the value of the option that d is at: the name of a pool or of a check.
func parseName(d *caddyfile.Dispenser, what string) (string, error) {
	name, err := parseArg(d, what)
	if err != nil {
		return "", err
	}
	if name == "" {
		return "", d.Err("name must not be empty")
	}
	return name, at(d, limits.Name(name))
}

// at adds the place of d to an error, if there is one.
func at(d *caddyfile.Dispenser, err error) error {
	if err == nil {
		return nil
	}
	return d.WrapErr(err)
}

// errAt returns an error with the place of a token.
func errAt(token caddyfile.Token, format string, args ...any) error {
	d := caddyfile.NewDispenser([]caddyfile.Token{token})
	d.Next()
	return d.Errf(format, args...)
}
