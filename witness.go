// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/grammar"
	"github.com/caddy-alive/caddy-alive/internal/limits"
	"github.com/caddy-alive/caddy-alive/internal/redact"
	"github.com/caddy-alive/caddy-alive/internal/suggest"
	"github.com/caddy-alive/caddy-alive/internal/witness"
)

// Observe is what of the traffic accuses an upstream. One that is accused gets no new
// requests while another one serves, and its checks decide at once whether it is alive.
// Connections that fail, and requests that end without an answer, always accuse.
type Observe struct {
	// Whether nothing that happens to requests counts, so that only checks decide. It
	// cannot be combined with `status`, `stall` or `eject`. Default: false.
	Off bool `json:"off,omitempty"`

	// The statuses of answers that accuse: codes (`502`), classes (`5xx`) and ranges
	// (`500-599`), or only `off` if none does. Two such answers in a row accuse. Global
	// placeholders can be used. An application should not answer with these statuses while
	// all is well with it.
	// Default: 502, 504, and 503 in answers without a `Retry-After` field.
	Status []string `json:"status,omitempty"`

	// How long requests wait for an upstream that sends no first byte of any answer,
	// until that accuses it: `auto`, which follows the pace of the upstream and is from
	// `500ms` to `10s`, a duration from `10ms` to `24h`, or `off`. With `off`, timeouts of
	// the transport, such as `response_header_timeout`, do not accuse either. Default:
	// `auto`.
	Stall string `json:"stall,omitempty"`
}

// Eject is when an upstream that passes its checks gets no requests for a while, because
// of what happens to them. Afterwards one request tries whether it is well again.
type Eject struct {
	// How many requests in a row have to fail, with no good answer between, from 1 to
	// 1000. `-1` is off: no upstream is ejected. Default: 5.
	After *int `json:"after,omitempty"`

	// How long an upstream is out the first time, from `10ms` to `24h`. Every further
	// time in a row is as much longer. Default: `30s`.
	For caddy.Duration `json:"for,omitempty"`

	// How long an upstream is out at most, from `for` to `24h`. Default: `5m`, or `for` if
	// that is longer.
	Longest caddy.Duration `json:"longest,omitempty"`

	// How much of the weight of a group (primaries, or backups) may be ejected at once,
	// above `0%`. One of two or three equal upstreams may always be. Default: `30%`.
	Share string `json:"share,omitempty"`
}

// defaultRetries is how often a request that failed goes to another upstream.
const defaultRetries = 2

// resolveRetries returns how often a request that failed goes to another upstream, 0 for
// never.
func resolveRetries(configured *int) (int, error) {
	switch {
	case configured == nil:
		return defaultRetries, nil
	case *configured == limits.Off:
		return 0, nil
	}
	return *configured, limits.Retries(*configured)
}

// provisionRetries sets how often the handler selects again for a request that failed,
// where the handler does not say so itself. It reports whether it ever does.
func provisionRetries(s *Selection, ctx caddy.Context) (again bool, err error) {
	retries, err := resolveRetries(s.Retries)
	if err != nil {
		return false, err
	}
	lb := s.proxy.LoadBalancing
	switch {
	case lb == nil:
		s.proxy.LoadBalancing = &reverseproxy.LoadBalancing{Retries: retries}
		return retries != 0, nil
	case lb.Retries == 0 && lb.TryDuration == 0:
		lb.Retries = retries
	case s.Retries != nil:
		ctx.Logger().Warn("the option retries of lb_policy alive has no effect: lb_retries and lb_try_duration of the handler decide; " +
			"remove either retries, or both of them")
	}
	return lb.Retries != 0 || lb.TryDuration != 0, nil
}

// resolveWitness returns what is configured about what the traffic says, or what is wrong
// with it. Both options can be nil.
func resolveWitness(o *Observe, e *Eject) (witness.Settings, error) {
	settings := witness.DefaultSettings()
	if err := o.resolve(&settings); err != nil {
		return settings, err
	}
	if err := e.resolve(&settings); err != nil {
		return settings, err
	}
	if !settings.Off {
		return settings, nil
	}
	return witness.Settings{Off: true}, checkEjects(o, e)
}

// checkEjects reports an error if upstreams are to be ejected by what does not count.
func checkEjects(o *Observe, e *Eject) error {
	if o != nil && o.Off && e != nil && !e.isOff() {
		return errors.New("eject cannot be combined with observe off: what happens to requests ejects, and then nothing of it counts; " +
			"with status off in observe, stalls and requests without an answer still eject")
	}
	return nil
}

// resolve sets what o says.
func (o *Observe) resolve(settings *witness.Settings) (err error) {
	if o == nil {
		return nil
	}
	if settings.Off = o.Off; o.Off && (o.Status != nil || o.Stall != "") {
		return errors.New("observe: off cannot be combined with status and stall")
	}
	if o.Status != nil {
		if settings.Status, err = resolveStatuses(o.Status); err != nil {
			return err
		}
	}
	if o.Stall != "" {
		settings.Stall, err = limits.ParseStall(o.Stall)
	}
	return err
}

// resolveStatuses returns the statuses that accuse, in order, which is empty for off.
// Errors show them as written.
func resolveStatuses(list []string) ([]witness.StatusRange, error) {
	ranges := make([]witness.StatusRange, 0, len(list))
	if slices.Equal(list, []string{"off"}) {
		return ranges, nil
	}
	if len(list) == 0 {
		return nil, errors.New(`observe: status must not be empty; ["off"] is for none`)
	}
	for _, written := range list {
		text, err := caddy.NewReplacer().ReplaceOrErr(written, true, true)
		if err != nil {
			return nil, fmt.Errorf("observe: status: %v; only global placeholders, such as {env.*}, can stand for a status", err)
		}
		r, err := limits.ParseObserved(text)
		if err != nil {
			if redact.HasPlaceholder(written) { // the same error, without the value of a placeholder
				_, err = limits.ParseObserved(written)
			}
			return nil, err
		}
		ranges = append(ranges, witness.StatusRange(r))
	}
	slices.SortFunc(ranges, func(a, b witness.StatusRange) int {
		return cmp.Or(cmp.Compare(a.First, b.First), cmp.Compare(a.Last, b.Last))
	})
	return slices.Compact(ranges), nil
}

// isOff reports whether e says that no upstream is ejected.
func (e *Eject) isOff() bool { return e.After != nil && *e.After == limits.Off }

// resolve sets what e says.
func (e *Eject) resolve(settings *witness.Settings) error {
	if e == nil {
		return nil
	}
	if e.isOff() {
		if e.For != 0 || e.Longest != 0 || e.Share != "" {
			return errors.New("eject: for, longest and share have no meaning while after is -1, which is off")
		}
		settings.EjectAfter = 0
		return nil
	}
	if e.After != nil {
		settings.EjectAfter = *e.After
		if err := limits.EjectAfter(*e.After); err != nil {
			return err
		}
	}
	if e.For != 0 {
		settings.EjectFor = time.Duration(e.For)
		if err := limits.EjectFor(settings.EjectFor); err != nil {
			return err
		}
	}
	settings.EjectLongest = max(settings.EjectLongest, settings.EjectFor)
	if e.Longest != 0 {
		settings.EjectLongest = time.Duration(e.Longest)
		if err := limits.EjectLongest(settings.EjectLongest); err != nil {
			return err
		}
	}
	if settings.EjectFor > settings.EjectLongest {
		return fmt.Errorf("eject: for (%s) must not be longer than longest (%s)", settings.EjectFor, settings.EjectLongest)
	}
	if e.Share != "" {
		share, err := limits.EjectShare(e.Share)
		if err != nil {
			return err
		}
		settings.EjectShare = share
	}
	return nil
}

// parseRetries reads the option that d is at.
func parseRetries(s *Selection, d *caddyfile.Dispenser) error {
	text, err := parseArg(d, "off, or one "+limits.RetriesRange+", like 2")
	if err != nil {
		return err
	}
	retries, err := limits.ParseRetries(text)
	s.Retries = &retries
	return grammar.At(d, err)
}

// parseObserve reads the option that d is at.
func parseObserve(s *Selection, d *caddyfile.Dispenser) error {
	const takes = "observe takes off, or a block with status and stall"
	o, place := new(Observe), d.Token()
	if d.NextArg() {
		if o.Off = d.Val() == "off"; !o.Off || d.NextArg() {
			return d.Errf("%s; got '%s'", takes, d.Val())
		}
	}
	err := grammar.ReadBlock(d, func(option string) error {
		if o.Off {
			return d.Err("observe off has no options")
		}
		return o.unmarshalOption(d, option)
	}, nil)
	switch {
	case err != nil:
		return err
	case !o.Off && o.Status == nil && o.Stall == "":
		return errAt(place, errors.New(takes))
	}
	s.Observe = o
	return endWitness(s, place)
}

// unmarshalOption reads the option that d is at, in the block of observe.
func (o *Observe) unmarshalOption(d *caddyfile.Dispenser, option string) (err error) {
	switch option {
	case "status":
		if o.Status = d.RemainingArgs(); len(o.Status) == 0 {
			return d.Err("status takes off, or codes, classes and ranges, like 502 5xx 500-599")
		}
		if slices.Equal(o.Status, []string{"off"}) {
			return nil
		}
		for _, text := range o.Status {
			if _, err := limits.ParseObserved(text); err != nil && !redact.HasPlaceholder(text) {
				return d.WrapErr(err)
			}
		}
		return nil
	case "stall":
		if o.Stall, err = parseArg(d, limits.StallRange); err != nil {
			return err
		}
		_, err = limits.ParseStall(o.Stall)
		return grammar.At(d, err)
	default:
		return d.Err(suggest.InBlock("observe", option, suggest.ObserveOptions))
	}
}

// parseEject reads the option that d is at.
func parseEject(s *Selection, d *caddyfile.Dispenser) error {
	e, place := new(Eject), d.Token()
	text, err := parseArg(d, "off, or one "+limits.EjectAfterRange+", like 5")
	if err != nil {
		return err
	}
	after, err := limits.ParseEjectAfter(text)
	if err != nil {
		return d.WrapErr(err)
	}
	e.After = &after
	err = grammar.ReadBlock(d, func(option string) error {
		if e.isOff() {
			return d.Err("eject off has no options")
		}
		return e.unmarshalOption(d, option)
	}, nil)
	if err != nil {
		return err
	}
	s.Eject = e
	return endWitness(s, place)
}

// unmarshalOption reads the option that d is at, in the block of eject.
func (e *Eject) unmarshalOption(d *caddyfile.Dispenser, option string) (err error) {
	switch option {
	case "for":
		args := d.RemainingArgs()
		if len(args) < 1 || len(args) > 2 {
			return d.Err("for takes a duration and perhaps the longest one, like for 30s 5m")
		}
		base, err := limits.ParseEjectFor(args[0])
		if err != nil {
			return d.WrapErr(err)
		}
		e.For = caddy.Duration(base)
		if len(args) == 2 {
			longest, err := limits.ParseEjectLongest(args[1])
			if err != nil {
				return d.WrapErr(err)
			}
			e.Longest = caddy.Duration(longest)
		}
		return grammar.At(d, e.resolve(new(witness.DefaultSettings())))
	case "share":
		if e.Share, err = parseArg(d, limits.EjectShareRange); err != nil {
			return err
		}
		_, err = limits.EjectShare(e.Share)
		return grammar.At(d, err)
	default:
		return d.Err(suggest.InBlock("eject", option, suggest.EjectOptions))
	}
}

// endWitness reports an error if the option at a place and the other one exclude each
// other.
func endWitness(s *Selection, place caddyfile.Token) error {
	if err := checkEjects(s.Observe, s.Eject); err != nil {
		return errAt(place, err)
	}
	return nil
}
