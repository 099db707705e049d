// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"encoding/json"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"

	"github.com/caddy-alive/caddy-alive/internal/grammar"
	"github.com/caddy-alive/caddy-alive/internal/kinds"
	"github.com/caddy-alive/caddy-alive/internal/limits"
	"github.com/caddy-alive/caddy-alive/internal/monitor"
	"github.com/caddy-alive/caddy-alive/internal/placeholder"
	"github.com/caddy-alive/caddy-alive/internal/redact"
	"github.com/caddy-alive/caddy-alive/internal/suggest"
)

// parseCheck reads the check that d is at. The options that all checks have in
// common are taken out; what remains is for the module of its kind.
func parseCheck(d *caddyfile.Dispenser) (*HealthCheck, error) {
	all := d.NextSegment()
	d = caddyfile.NewDispenser(all)
	d.Next() // consume "check"
	args := d.RemainingArgsAsTokens()
	if len(args) == 0 {
		return nil, d.Errf("check needs a kind: %s", kinds.List())
	}
	check := new(HealthCheck)
	var own []caddyfile.Token
	fresh := false // fresh_connection is given
	err := grammar.ReadBlock(d, func(option string) error {
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
		return nil, explainOption(err)
	}
	if _, check.resolved.Identity, err = kinds.Identify(check.ProbeRaw); err != nil {
		return nil, err
	}
	check.resolved.Settings, err = check.resolve()
	return check, err
}

// validateOptions reports what is wrong with the options that all checks have in
// common, as far as they are known before placeholders are replaced.
func (c *HealthCheck) validateOptions() error {
	if c.Address != "" && !strings.Contains(c.Address, "{") {
		addr, err := monitor.ParseAddress(c.Address)
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

// anyDuration is what options take whose value is a duration, after "a" or "one".
const anyDuration = limits.DurationRange + ", like 5s"

// checkArgs is what options take that all checks have in common.
var checkArgs = map[string]string{
	"interval": "one " + anyDuration, "fast_interval": "one " + anyDuration, "down_interval": "one " + anyDuration, "timeout": "one " + anyDuration,
	"passes": "one " + limits.CountRange, "fails": "one " + limits.CountRange, "jitter": "one " + limits.PercentRange,
	"port": "one port, like 8081 or +1000", "address": "one address, like 127.0.0.1:8081", "proxy_protocol": limits.ProxyProtocols,
}

// unmarshalOption reads the option that d is at, one that all checks have in common.
func (c *HealthCheck) unmarshalOption(d *caddyfile.Dispenser, option string) (err error) {
	switch option {
	case "name":
		c.Name, err = parseName(d, "a label, like web")
		return err
	case "keep_connection":
		c.KeepConnection = true
		return grammar.NoArg(d, option)
	}
	text, err := parseArg(d, checkArgs[option])
	if err != nil {
		return err
	}
	parse := func(value *caddy.Duration, shortest time.Duration) error {
		parsed, err := limits.ParseDuration(option, text, "a "+anyDuration, shortest, limits.MaxDuration)
		*value = caddy.Duration(parsed)
		return err
	}
	switch option {
	case "interval":
		err = parse(&c.Interval, limits.MinInterval)
	case "fast_interval":
		err = parse(&c.FastInterval, limits.MinInterval)
	case "down_interval":
		err = parse(&c.DownInterval, limits.MinInterval)
	case "timeout":
		err = parse(&c.Timeout, limits.MinTimeout)
	case "passes":
		c.Passes, err = limits.ParseCount(option, text)
	case "fails":
		c.Fails, err = limits.ParseCount(option, text)
	case "jitter":
		c.Jitter = text
		_, err = limits.Percent(option, text)
	case "port":
		c.Port = portFromText(text)
		if err = c.Port.check(); text == "" {
			_, _, err = limits.Port(text)
		}
	case "address":
		c.Address = text
		if err = placeholder.Check(option, text); !strings.Contains(text, "{") {
			_, err = monitor.ParseAddress(text)
		}
	case "proxy_protocol":
		c.ProxyProtocol = text
		err = limits.ProxyProtocol(text)
	}
	return grammar.At(d, err)
}

// parseProbe has the module of the kind, the first token of d, read the rest.
func parseProbe(d *caddyfile.Dispenser) (json.RawMessage, error) {
	d.Next()
	kind := d.Val()
	info, err := kinds.Module(kind)
	if err != nil {
		return nil, d.WrapErr(err)
	}
	prober, err := caddyfile.UnmarshalModule(d, string(info.ID))
	if err != nil {
		return nil, err
	}
	return caddyconfig.JSONModuleObject(prober, "kind", kind, nil), nil
}

// explainOption replaces the error for an option that a kind of check does not have, where
// it is known where that option belongs. An error that a kind of another plugin words by
// itself stays as it is.
func explainOption(err error) error {
	if unknown, ok := errors.AsType[*grammar.UnknownOptionError](err); ok {
		if hint := suggest.InCheck(unknown.Option.Text); hint != "" {
			return errAt(unknown.Option, errors.New(hint))
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
	return name, grammar.At(d, limits.Name(name))
}

// Port is where a check probes an upstream: a port, such as `8081`; a text with a plus,
// such as `+1000`, for a port that is so much above that of each upstream; or a text with
// placeholders that stand for one of them.
type Port string

// UnmarshalJSON reads a number or a text. What is wrong with it is known when the config
// is loaded.
func (p *Port) UnmarshalJSON(data []byte) error {
	text := string(data)
	if err := json.Unmarshal(data, &text); err != nil && data[0] == '"' {
		return err
	}
	if text == "0" || text == "null" {
		text = ""
	}
	*p = portFromText(text)
	return nil
}

// MarshalJSON writes a port as a number, and other forms as a text.
func (p Port) MarshalJSON() ([]byte, error) {
	if number, added, err := limits.Port(string(p)); err == nil && !added {
		return strconv.AppendInt(nil, int64(number), 10), nil
	}
	return json.Marshal(string(p))
}

// check returns an error if the text is none of the forms of a port.
func (p Port) check() error {
	if p == "" || redact.HasPlaceholder(string(p)) {
		return placeholder.Check("port", string(p))
	}
	_, _, err := limits.Port(string(p))
	return err
}

// portFromText returns a port in one form for all ways to write it.
func portFromText(text string) Port {
	switch number, added, err := limits.Port(text); {
	case err != nil:
		return Port(text)
	case added:
		return Port("+" + strconv.Itoa(number))
	default:
		return Port(strconv.Itoa(number))
	}
}

// errAt adds the place of a token to an error.
func errAt(token caddyfile.Token, err error) error {
	d := caddyfile.NewDispenser([]caddyfile.Token{token})
	d.Next()
	return d.WrapErr(err)
}

// parseGlobalOption reads the global option of the app. Syntax:
//
//	alive {
//		fleet         <name>
//		member        <name>
//		sync_interval <duration>
//		probers       <n>|off
//	}
func parseGlobalOption(d *caddyfile.Dispenser, existing any) (any, error) {
	d.Next() // consume the option's name
	if existing != nil {
		return nil, d.WrapErr(grammar.OptionTwice(d.Val()))
	}
	if d.NextArg() {
		return nil, d.Err("alive takes a block with " + suggest.Enumerate(suggest.GlobalOptions))
	}
	app := new(App)
	if err := grammar.ReadBlock(d, func(option string) error { return app.unmarshalOption(d, option) }, nil); err != nil {
		return nil, err
	}
	if app.Fleet == "" {
		if err := app.needsFleet(); err != nil {
			return nil, d.WrapErr(err)
		}
	}
	return httpcaddyfile.App{Name: "alive", Value: caddyconfig.JSON(app, nil)}, nil
}

// unmarshalOption reads the option that d is at.
func (a *App) unmarshalOption(d *caddyfile.Dispenser, option string) (err error) {
	switch option {
	case "fleet":
		if a.Fleet, err = parseArg(d, "the name of a fleet, like shops"); err != nil {
			return err
		}
		return grammar.At(d, limits.Fleet(a.Fleet))
	case "member":
		if a.Member, err = parseArg(d, "the name of this Caddy in the fleet, like edge-1"); err != nil {
			return err
		}
		return grammar.At(d, limits.Member(a.Member))
	case "sync_interval":
		text, err := parseArg(d, "a duration, like 2s")
		if err != nil {
			return err
		}
		interval, err := limits.ParseSyncInterval(text)
		a.SyncInterval = caddy.Duration(interval)
		return grammar.At(d, err)
	case "probers":
		text, err := parseArg(d, "off, or one "+limits.ProbersRange+", like 3")
		if err != nil {
			return err
		}
		probers, err := limits.ParseProbers(text)
		a.Probers = &probers
		return grammar.At(d, err)
	default:
		return d.Err(suggest.InGlobal(option))
	}
}
