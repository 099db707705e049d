// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"fmt"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-alive/caddy-alive/internal/grammar"
	"github.com/caddy-alive/caddy-alive/internal/limits"
	"github.com/caddy-alive/caddy-alive/internal/selector"
	"github.com/caddy-alive/caddy-alive/internal/session"
	"github.com/caddy-alive/caddy-alive/internal/suggest"
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
//		spill      <percent>
//		slow_start <window> [<floor>]
//		fail_open  none_up|<percent>|<n>|off
//		hold       <duration>|off
//		retries    <n>|off
//		observe    off | {
//			status <codes...>|off
//			stall  auto|<duration>|off
//		}
//		eject      off | <n> {
//			for   <base> [<longest>]
//			share <percent>
//		}
//		max_requests <n> [<upstreams...>]
//		queue      <timeout> [<length>]
//		sticky     [<cookie>] {
//			secret  <text>
//			max_age <duration>
//		}
//		stale      <duration>|off
//		select     <policy> [<args...>] {
//			...
//		}
//	}
//
// Each backup line is one more group. Given a URI, upstreams are checked by an HTTP request for it; without any
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
	repeats := func(option string) bool {
		return slices.Contains([]string{"check", "weight", "backup", "max_requests"}, option)
	}
	places := make(map[string]caddyfile.Token) // of the options
	err := grammar.ReadBlock(d, func(option string) error {
		if inline && option == "check" {
			return d.Err("lb_policy alive takes a URI or check blocks, not both; write the URI as check http <uri>")
		}
		places[option] = d.Token()
		return s.unmarshalOption(d, option, uri)
	}, repeats)
	if err != nil {
		return err
	}
	return s.checkTogether(places)
}

// checkTogether reports options that need each other, or exclude each other, at one of
// their places.
func (s *Selection) checkTogether(places map[string]caddyfile.Token) error {
	if _, err := resolveSpill(s); err != nil {
		return errAt(places["spill"], err)
	}
	if s.Sticky != nil && s.SelectRaw != nil {
		return errAt(places["sticky"], errStickySelect)
	}
	return nil
}

// unmarshalOption reads the option that d is at, in the block of a policy that has
// that URI.
func (s *Selection) unmarshalOption(d *caddyfile.Dispenser, option, uri string) (err error) {
	switch option {
	case "name":
		s.Name, err = parseName(d, "a label, like shop")
		return err
	case "check":
		return s.addCheck(d)
	case "weight":
		return s.parseWeight(d)
	case "backup":
		return s.parseBackups(d)
	case "spill":
		if s.Spill, err = parseArg(d, limits.SpillRange); err != nil {
			return err
		}
		_, err = limits.Spill(s.Spill)
		return grammar.At(d, err)
	case "slow_start":
		s.SlowStart = new(SlowStart)
		return s.SlowStart.parse(d)
	case "fail_open":
		if s.FailOpen, err = parseArg(d, limits.FailOpenRange); err != nil {
			return err
		}
		_, _, err = limits.FailOpen(s.FailOpen)
		return grammar.At(d, err)
	case "hold":
		text, err := parseArg(d, "off, or one "+limits.DurationRange+", like 2s")
		if err != nil {
			return err
		}
		hold, err := limits.ParseHold(text)
		s.Hold = (*caddy.Duration)(&hold)
		return grammar.At(d, err)
	case "retries":
		return parseRetries(s, d)
	case "observe":
		return parseObserve(s, d)
	case "eject":
		return parseEject(s, d)
	case "max_requests":
		return s.parseMaxRequests(d)
	case "queue":
		s.Queue = new(Queue)
		return s.Queue.parse(d)
	case "sticky":
		s.Sticky = new(Sticky)
		return s.Sticky.parse(d)
	case "stale":
		text, err := parseArg(d, "off, or one "+limits.StaleRange)
		if err != nil {
			return err
		}
		stale, err := limits.ParseStale(text)
		s.Stale = (*caddy.Duration)(&stale)
		return grammar.At(d, err)
	case "select":
		return s.parseSelect(d)
	default:
		return d.Err(suggest.InPolicy(option, d.RemainingArgs(), uri))
	}
}

// addCheck reads the check that d is at, which must differ from those before it.
func (s *Selection) addCheck(d *caddyfile.Dispenser) error {
	place := d.Token()
	check, err := parseCheck(d)
	if err != nil {
		return err
	}
	check.place = place
	err = check.differs(s.Checks, "this check", func(i int) string {
		return fmt.Sprintf("the one at %s:%d", s.Checks[i].place.File, s.Checks[i].place.Line)
	})
	if err != nil {
		return errAt(place, err)
	}
	s.Checks = append(s.Checks, check)
	return nil
}

// parseBackups reads the option that d is at: the upstreams of one more group.
func (s *Selection) parseBackups(d *caddyfile.Dispenser) error {
	names := d.RemainingArgs()
	if len(names) == 0 {
		return d.Err("backup takes upstreams, as reverse_proxy accepts them")
	}
	s.Backups = append(s.Backups, nil)
	group := &s.Backups[len(s.Backups)-1]
	for _, name := range names {
		if slices.ContainsFunc(s.Backups, func(group []string) bool { return slices.Contains(group, name) }) {
			return d.WrapErr(grammar.GivenTwice("backup " + name))
		}
		if err := s.backupNames.Note(name); err != nil {
			return d.Errf("backup: %v", err)
		}
		*group = append(*group, name)
	}
	return nil
}

// parseMaxRequests reads the option that d is at: a limit, and the upstreams that it is for
// if it is not for all.
func (s *Selection) parseMaxRequests(d *caddyfile.Dispenser) error {
	args := d.RemainingArgs()
	if len(args) == 0 {
		return d.Errf("max_requests takes a %s, and the upstreams that it is for if it is not for all, like max_requests 20 or max_requests 5 app1:8080", limits.LimitRange)
	}
	limit, err := limits.ParseLimit(args[0])
	if last := len(args) - 1; err != nil && last > 0 {
		if _, swapped := limits.ParseLimit(args[last]); swapped == nil {
			return d.Errf("the limit comes first: write max_requests %s %s", args[last], strings.Join(args[:last], " "))
		}
	}
	if err != nil {
		return d.WrapErr(err)
	}
	if s.MaxRequests == nil {
		s.MaxRequests = new(MaxRequests)
	}
	m := s.MaxRequests
	if len(args) == 1 {
		if m.Default != nil {
			return d.WrapErr(grammar.GivenTwice("max_requests of all upstreams"))
		}
		m.Default = &limit
		return nil
	}
	for _, name := range args[1:] {
		if _, given := m.Upstreams[name]; given {
			return d.WrapErr(grammar.GivenTwice("max_requests of " + name))
		}
		if err := s.limitNames.Note(name); err != nil {
			return d.Errf("max_requests: %v", err)
		}
		if m.Upstreams == nil {
			m.Upstreams = make(map[string]int)
		}
		m.Upstreams[name] = limit
	}
	return nil
}

// parse reads the option that d is at: a timeout, and perhaps a length.
func (q *Queue) parse(d *caddyfile.Dispenser) error {
	args := d.RemainingArgs()
	if len(args) < 1 || len(args) > 2 {
		return d.Err("queue takes a timeout and perhaps how many requests can wait, like queue 10s 1000")
	}
	timeout, err := limits.ParseQueueTimeout(args[0])
	if err != nil {
		return d.WrapErr(err)
	}
	q.Timeout = caddy.Duration(timeout)
	if len(args) == 2 {
		length, err := limits.ParseQueueLength(args[1])
		if err != nil {
			return d.WrapErr(err)
		}
		q.Length = &length
	}
	return nil
}

// parse reads the option that d is at: perhaps the name of a cookie, and perhaps a block.
// No error shows the secret.
func (c *Sticky) parse(d *caddyfile.Dispenser) error {
	if d.NextArg() {
		c.Cookie = d.Val()
		if err := limits.CookieName(c.Cookie); err != nil {
			return d.WrapErr(err)
		}
		if d.NextArg() {
			return d.Err("sticky takes one argument at most, the name of a cookie; write a secret in its block: sticky lb { secret <text> }")
		}
	}
	return grammar.ReadBlock(d, func(option string) (err error) {
		switch option {
		case "secret":
			if c.Secret, err = parseArg(d, "one text, in quotes if it has spaces"); err != nil {
				return err
			}
			return grammar.At(d, session.CheckSecret(c.Secret))
		case "max_age":
			text, err := parseArg(d, "one duration, like 24h")
			if err != nil {
				return err
			}
			age, err := limits.ParseMaxAge(text)
			c.MaxAge = caddy.Duration(age)
			return grammar.At(d, err)
		case "name", "cookie":
			return d.Err("the name of the cookie is the argument of sticky: write sticky <cookie>")
		default:
			return d.Err(suggest.InBlock("sticky", option, suggest.StickyOptions))
		}
	}, nil)
}

// parseSelect reads the option that d is at: a selection policy.
func (s *Selection) parseSelect(d *caddyfile.Dispenser) error {
	if !d.NextArg() {
		return d.Err("select takes a selection policy, like least_conn")
	}
	policy := d.Val()
	if !selector.Can(policy) {
		return d.WrapErr(selector.ErrCannot(policy))
	}
	block := d.NewFromNextSegment()
	block.Next()
	inner, err := caddyfile.UnmarshalModule(block, "http.reverse_proxy.selection_policies."+policy)
	if err != nil {
		return err
	}
	s.SelectRaw = caddyconfig.JSONModuleObject(inner, "policy", policy, nil)
	if selector.CountsPositions(s.SelectRaw) {
		return errFallback(block)
	}
	return nil
}

// errFallback returns the error for a fallback that cannot be, with its place in the block
// of the policy that has it.
func errFallback(d *caddyfile.Dispenser) error {
	for d.Reset(); d.Next(); {
		if d.Val() == "fallback" && d.NextArg() && d.Val() == selector.Positional {
			break
		}
	}
	return d.Errf("select: %v", selector.ErrPositional)
}

// parseWeight reads the option that d is at: an upstream and its weight.
func (s *Selection) parseWeight(d *caddyfile.Dispenser) error {
	var name, text string
	if !d.AllArgs(&name, &text) {
		return d.Errf("weight takes an upstream and a %s, like weight app1:8080 3", limits.WeightRange)
	}
	weight, err := weightFromText(text)
	if err != nil {
		return d.WrapErr(err)
	}
	if _, given := s.Weights[name]; given {
		return d.WrapErr(grammar.GivenTwice("the weight of " + name))
	}
	if err := s.weightNames.Note(name); err != nil {
		return d.Errf("weight: %v", err)
	}
	if s.Weights == nil {
		s.Weights = make(map[string]Weight)
	}
	s.Weights[name] = weight
	return nil
}

// parse reads the option that d is at: a window, and perhaps a floor.
func (c *SlowStart) parse(d *caddyfile.Dispenser) error {
	args := d.RemainingArgs()
	if len(args) < 1 || len(args) > 2 {
		return d.Err("slow_start takes a window and perhaps a floor, like slow_start 30s 10%")
	}
	window, err := limits.ParseRampWindow(args[0])
	if err != nil {
		return d.WrapErr(err)
	}
	c.Window = caddy.Duration(window)
	if len(args) == 2 {
		c.Floor = args[1]
		if c.Floor == "" {
			return d.Err("the floor of slow_start must not be empty")
		}
	}
	_, _, err = c.resolve()
	return grammar.At(d, err)
}

// Interface guard
var _ caddyfile.Unmarshaler = (*Selection)(nil)
