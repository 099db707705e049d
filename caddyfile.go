// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"

	"github.com/caddy-alive/caddy-alive/internal/limits"
)

// UnmarshalCaddyfile sets up the policy from Caddyfile tokens. Syntax:
//
//	lb_policy alive [<uri>] {
//		name <label>
//		check <kind> [<args...>] {
//			name          <label>
//			interval      <duration>
//			fast_interval <duration>
//			down_interval <duration>
//			timeout       <duration>
//			passes        <number>
//			fails         <number>
//			jitter        <percent>
//			port          <port>
//			address       <address>
//			proxy_protocol off|v1|v2
//			keep_connection
//			...
//		}
//		weight     <upstream> <n>
//		backup     <upstreams...>
//		slow_start <window> [<floor>]
//		fail_open  none_up|<percent>|off
//		hold       <duration>|off
//		select     <policy> [<args...>] {
//			...
//		}
//	}
//
// Given a URI, upstreams are checked by an HTTP request for it; without any
// check, by a TCP connection. The kinds of check and the options of each are
// those of the modules in alive.probes.
func (s *Selection) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // consume the policy's name
	kind := d.Token()
	inline, uri := d.NextArg(), d.Val()
	if !inline {
		uri = ""
	} else {
		if _, err := caddy.GetModule("alive.probes." + uri); uri != "" && err == nil {
			return d.Errf("lb_policy alive takes a URI, like /healthz; write a check of a kind in its block: check %s", uri)
		}
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
		if inline && d.Val() == "check" {
			return d.Err("a check block cannot stand beside a URI after lb_policy alive; write that as a check http <uri>, too")
		}
		if err := s.unmarshalOption(d, uri); err != nil {
			return err
		}
	}
	return nil
}

// unmarshalOption reads the option that d is at, in the block of a policy that has
// that URI.
func (s *Selection) unmarshalOption(d *caddyfile.Dispenser, uri string) error {
	option := d.Val()
	twice := func(given bool) error {
		if given {
			return d.Errf("option '%s' is given twice", option)
		}
		return nil
	}
	switch option {
	case "check":
		place := d.Token()
		check, err := parseCheck(d)
		if err != nil {
			return err
		}
		check.place = place
		if same := slices.IndexFunc(s.Checks, check.equal); same >= 0 {
			first := s.Checks[same].place
			return errAt(place, "this check is the same as the one at %s:%d", first.File, first.Line)
		}
		if same := slices.IndexFunc(s.Checks, check.hasNameOf); same >= 0 {
			first := s.Checks[same].place
			return errAt(place, "this check has the name of the one at %s:%d: %s", first.File, first.Line, check.Name)
		}
		s.Checks = append(s.Checks, check)
		return nil

	case "name":
		if err := twice(s.Name != ""); err != nil {
			return err
		}
		var err error
		if s.Name, err = parseArg(d, "a label, like shop"); err != nil {
			return err
		}
		if s.Name == "" {
			return d.Err("name must not be empty")
		}
		if err := limits.Name(s.Name); err != nil {
			return d.WrapErr(err)
		}
		return nil

	case "weight":
		return s.parseWeight(d)

	case "backup":
		names := d.RemainingArgs()
		if len(names) == 0 {
			return d.Err("backup takes upstreams, as reverse_proxy names them")
		}
		for _, name := range names {
			if slices.Contains(s.Backups, name) {
				return d.Errf("%s is named as a backup twice", name)
			}
			if err := nameOnce(&s.backedUp, name); err != nil {
				return d.Errf("backup: %v", err)
			}
			s.Backups = append(s.Backups, name)
		}
		return nil

	case "slow_start":
		if err := twice(s.SlowStart != nil); err != nil {
			return err
		}
		s.SlowStart = new(SlowStart)
		return s.SlowStart.parse(d)

	case "fail_open":
		if err := twice(s.FailOpen != ""); err != nil {
			return err
		}
		var err error
		if s.FailOpen, err = parseArg(d, "none_up, off or one percentage, like 50%"); err != nil {
			return err
		}
		if _, err := parseFailOpen(s.FailOpen); err != nil || s.FailOpen == "" {
			return d.Errf("fail_open must be none_up, off or a percentage from 0%% to 100%%, like 50%%; got '%s'", s.FailOpen)
		}
		return nil

	case "hold":
		if err := twice(s.Hold != nil); err != nil {
			return err
		}
		s.Hold = new(caddy.Duration)
		return parseHold(d, s.Hold)

	case "select":
		if err := twice(s.SelectRaw != nil); err != nil {
			return err
		}
		if !d.NextArg() {
			return d.Err("select takes a selection policy, like least_conn")
		}
		policy := d.Val()
		if !canSelect(policy) {
			return d.WrapErr(errCannotSelect(policy))
		}
		block := d.NewFromNextSegment()
		block.Next()
		selector, err := caddyfile.UnmarshalModule(block, "http.reverse_proxy.selection_policies."+policy)
		if err != nil {
			return err
		}
		s.SelectRaw = caddyconfig.JSONModuleObject(selector, "policy", policy, nil)
		if selectsByPosition(s.SelectRaw) {
			return errFallback(block)
		}
		return nil

	default:
		return errOption(d, uri)
	}
}

// errFallback says at which line of a policy the fallback stands that cannot be.
func errFallback(d *caddyfile.Dispenser) error {
	for d.Reset(); d.Next(); {
		if d.Val() == "fallback" && d.NextArg() && d.Val() == positional {
			break
		}
	}
	return d.Errf("select: %v", errPositional)
}

// parseWeight reads the option that d is at: an upstream and its weight.
func (s *Selection) parseWeight(d *caddyfile.Dispenser) error {
	var name, text string
	if !d.AllArgs(&name, &text) {
		return d.Errf("weight takes an upstream and %s, like weight app1:8080 3", limits.WeightRange)
	}
	weight, err := parseWeight(text)
	if err != nil {
		return d.WrapErr(err)
	}
	if _, given := s.Weights[name]; given {
		return d.Errf("the weight of %s is given twice", name)
	}
	if err := nameOnce(&s.weighed, name); err != nil {
		return d.Errf("weight: %v", err)
	}
	if s.Weights == nil {
		s.Weights = make(map[string]Weight)
	}
	s.Weights[name] = weight
	return nil
}

// nameOnce notes that an option names an upstream, and reports an error if that is no
// address, or if the option has named the same upstream in another way. What
// placeholders stand for is known when the config is loaded.
func nameOnce(named *map[string]string, name string) error {
	dials, err := dialAddresses(name)
	if err != nil {
		return fmt.Errorf("%s: %v", name, err)
	}
	if *named == nil {
		*named = make(map[string]string)
	}
	for _, dial := range dials {
		if other, given := (*named)[dial]; given {
			return fmt.Errorf("%s and %s are the same upstream", other, name)
		}
		(*named)[dial] = name
	}
	return nil
}

// parse reads the option that d is at: a window, and perhaps a floor.
func (c *SlowStart) parse(d *caddyfile.Dispenser) error {
	args := d.RemainingArgs()
	if len(args) < 1 || len(args) > 2 {
		return d.Err("slow_start takes a window and perhaps a floor, like slow_start 30s 10%")
	}
	window, err := caddy.ParseDuration(args[0])
	if err != nil || window <= 0 {
		return d.Errf("the window of slow_start must be a duration above 0, like 30s; got '%s'", args[0])
	}
	c.Window = caddy.Duration(window)
	if len(args) == 2 {
		c.Floor = args[1]
		if c.Floor == "" {
			return d.Err("the floor of slow_start must not be empty")
		}
	}
	if _, _, err := c.resolve(); err != nil {
		return d.WrapErr(err)
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
	if duration < limits.MinHold {
		return d.Errf("hold must be at least %s; got '%s'", limits.MinHold, text)
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
	fresh := false // fresh_connection is given
	for d.NextBlock(0) {
		option := d.Val()
		common, err := check.unmarshalOption(d)
		if err != nil {
			return nil, err
		}
		if fresh = fresh || option == "fresh_connection"; fresh && check.KeepConnection {
			return nil, d.WrapErr(errKeepFresh)
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
	invalid := check.validateOptions()
	if invalid == nil && check.KeepConnection {
		invalid = checkKeeps(args[0].Text)
	}
	if err := invalid; err != nil {
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

// unmarshalOption reads the option that d is at, if it is one that all checks
// have in common.
func (c *HealthCheck) unmarshalOption(d *caddyfile.Dispenser) (common bool, err error) {
	switch d.Val() {
	case "name":
		if c.Name, err = parseArg(d, "a label, like web"); err != nil {
			return true, err
		}
		if c.Name == "" {
			err = d.Err("name must not be empty")
		} else if invalid := limits.Name(c.Name); invalid != nil {
			err = d.WrapErr(invalid)
		}
	case "interval":
		err = parsePositiveDuration(d, &c.Interval, limits.MinInterval)
	case "fast_interval":
		err = parsePositiveDuration(d, &c.FastInterval, limits.MinInterval)
	case "down_interval":
		err = parsePositiveDuration(d, &c.DownInterval, limits.MinInterval)
	case "timeout":
		err = parsePositiveDuration(d, &c.Timeout, limits.MinTimeout)
	case "passes":
		err = parseCount(d, &c.Passes)
	case "fails":
		err = parseCount(d, &c.Fails)
	case "jitter":
		if c.Jitter, err = parseArg(d, "one percentage from 0% to 100%"); err != nil {
			return true, err
		}
		if _, invalid := limits.Percent(c.Jitter); invalid != nil {
			err = d.Errf("jitter %v", invalid)
		}
	case "port":
		var text string
		if text, err = parseArg(d, "one port, like 8081"); err != nil {
			return true, err
		}
		if c.Port, err = limits.Port(text); err != nil {
			err = d.WrapErr(err)
		}
	case "address":
		if c.Address, err = parseArg(d, "one address, like 127.0.0.1:8081"); err != nil {
			return true, err
		}
		if _, invalid := parseProbeAddress(c.Address); invalid != nil && !strings.Contains(c.Address, "{") {
			err = d.WrapErr(invalid)
		}
	case "proxy_protocol":
		if c.ProxyProtocol, err = parseArg(d, "off, v1 or v2"); err != nil {
			return true, err
		}
		if invalid := limits.ProxyProtocol(c.ProxyProtocol); invalid != nil {
			err = d.WrapErr(invalid)
		}
	case "keep_connection":
		if c.KeepConnection = true; d.NextArg() {
			err = d.Errf("keep_connection takes no argument; got '%s'", d.Val())
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
func parsePositiveDuration(d *caddyfile.Dispenser, value *caddy.Duration, shortest time.Duration) error {
	option := d.Val()
	text, err := parseArg(d, "one duration above 0, like 5s")
	if err != nil {
		return err
	}
	duration, err := caddy.ParseDuration(text)
	if err != nil || duration <= 0 {
		return d.Errf("%s must be a duration above 0, like 5s; got '%s'", option, text)
	}
	if duration < shortest {
		return d.Errf("%s must be at least %s; got '%s'", option, shortest, text)
	}
	if err := limits.Duration(option, duration, shortest, limits.MaxDuration); err != nil {
		return d.WrapErr(err)
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

// parseGlobalOption reads the global option of the app. Syntax:
//
//	alive {
//		fleet         <name>
//		sync_interval <duration>
//	}
func parseGlobalOption(d *caddyfile.Dispenser, existing any) (any, error) {
	d.Next() // consume the option's name
	if existing != nil {
		return nil, d.Err("option 'alive' is given twice")
	}
	if d.NextArg() {
		return nil, d.Err("alive takes a block with fleet and sync_interval")
	}
	app := new(App)
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		switch option := d.Val(); option {
		case "fleet":
			if app.Fleet != "" {
				return nil, d.Errf("option '%s' is given twice", option)
			}
			name, err := parseArg(d, "the name of a fleet, like shops")
			if err != nil {
				return nil, err
			}
			if err := limits.Fleet(name); err != nil {
				return nil, d.WrapErr(err)
			}
			app.Fleet = name
		case "sync_interval":
			if app.SyncInterval != 0 {
				return nil, d.Errf("option '%s' is given twice", option)
			}
			text, err := parseArg(d, "a duration, like 2s")
			if err != nil {
				return nil, err
			}
			interval, err := caddy.ParseDuration(text)
			if err != nil {
				return nil, d.Errf("sync_interval must be a duration, like 2s; got '%s'", text)
			}
			app.SyncInterval = caddy.Duration(interval)
			if err := limits.SyncInterval(interval); err != nil {
				return nil, d.WrapErr(err)
			}
		default:
			return nil, d.Errf("unrecognized option '%s': alive has %s%s", option, enumerate(globalOptions), didYouMean(option, globalOptions))
		}
	}
	if app.SyncInterval != 0 && app.Fleet == "" {
		return nil, d.WrapErr(errNoFleet)
	}
	return httpcaddyfile.App{Name: "alive", Value: caddyconfig.JSON(app, nil)}, nil
}
