// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/balancer"
	"github.com/caddy-alive/caddy-alive/internal/limits"
	"github.com/caddy-alive/caddy-alive/internal/pool"
	"github.com/caddy-alive/caddy-alive/internal/redact"
	"github.com/caddy-alive/caddy-alive/internal/session"
	"github.com/caddy-alive/caddy-alive/internal/upstreamname"
	"github.com/caddy-alive/caddy-alive/internal/view"
)

// Weight is a share of the requests, in proportion to the weights of the other
// upstreams: a whole number from 0 to 256, or a text with global placeholders, such
// as `{env.WEIGHT}`, that stand for one when the config is loaded.
type Weight string

// UnmarshalJSON reads a number, or a text with a placeholder.
func (w *Weight) UnmarshalJSON(data []byte) error {
	if number, err := strconv.Atoi(string(data)); err == nil {
		*w = Weight(strconv.Itoa(number))
		return nil
	}
	var text string
	if err := json.Unmarshal(data, &text); err != nil || !redact.HasPlaceholder(text) {
		return limits.ErrWeight(string(data), `or a text with a placeholder, like "{env.WEIGHT}"`)
	}
	*w = Weight(text)
	return nil
}

// MarshalJSON writes a number as one, and a text with a placeholder as a text.
func (w Weight) MarshalJSON() ([]byte, error) {
	if number, err := strconv.Atoi(string(w)); err == nil {
		return strconv.AppendInt(nil, int64(number), 10), nil
	}
	return json.Marshal(string(w))
}

// resolve returns the number, or what is wrong with it.
func (w Weight) resolve() (int, error) {
	if !redact.HasPlaceholder(string(w)) {
		return limits.ParseWeight(string(w), "")
	}
	text, err := caddy.NewReplacer().ReplaceOrErr(string(w), true, true)
	if err != nil {
		return 0, fmt.Errorf("%v; only global placeholders, such as {env.*}, can stand for a weight", err)
	}
	number, err := limits.ParseWeight(text, "")
	if err != nil { // shown as written: what it stands for may be secret, if it is the wrong one
		return 0, limits.ErrWeight(string(w), "also with its placeholders replaced")
	}
	return number, nil
}

// resolveWeights returns the numbers, by the names that the config gives, or what is wrong
// with one.
func resolveWeights(configured map[string]Weight) (map[string]int, error) {
	numbers := make(map[string]int, len(configured))
	for _, name := range slices.Sorted(maps.Keys(configured)) {
		number, err := configured[name].resolve()
		if err != nil {
			return nil, fmt.Errorf("%s: %v", name, err)
		}
		numbers[name] = number
	}
	return numbers, nil
}

// weightFromText reads a weight of a Caddyfile.
func weightFromText(text string) (Weight, error) {
	if redact.HasPlaceholder(text) {
		return Weight(text), nil // what it stands for is known when the config is loaded
	}
	number, err := limits.ParseWeight(text, "")
	if err != nil {
		return "", err
	}
	return Weight(strconv.Itoa(number)), nil
}

// Backups are groups of upstreams. Each group gets requests only while those before it
// cannot serve. In JSON, a list of upstreams is one group, and a list of such lists is
// several.
type Backups [][]string

// UnmarshalJSON reads one group or several.
func (b *Backups) UnmarshalJSON(data []byte) error {
	var elements []json.RawMessage
	if err := json.Unmarshal(data, &elements); err != nil {
		return errors.New(backupsForms)
	}
	*b = nil
	var flat []string
	for _, element := range elements {
		var name string
		var group []string
		switch {
		case element[0] == '"' && json.Unmarshal(element, &name) == nil:
			flat = append(flat, name)
		case element[0] == '[' && json.Unmarshal(element, &group) == nil && !slices.Contains(group, ""):
			*b = append(*b, group)
		default:
			return fmt.Errorf("%s; got %s", backupsForms, element)
		}
	}
	switch {
	case flat == nil:
		return nil
	case *b != nil:
		return errors.New(backupsForms + "; got a list with both")
	}
	*b = Backups{flat}
	return nil
}

// backupsForms says what backups can be in JSON.
const backupsForms = `backups must be a list of upstreams, like ["app3:80"], or for several groups a list of such lists, like [["app3:80"], ["app4:80"]]`

// MarshalJSON writes one group as a list of upstreams, and several as a list of lists.
func (b Backups) MarshalJSON() ([]byte, error) {
	if len(b) == 1 && len(b[0]) > 0 {
		return json.Marshal(b[0])
	}
	return json.Marshal([][]string(b))
}

// MaxRequests are limits of how many requests upstreams get at once. A limit belongs to an
// address: all handlers that have one for the address count the same requests, and each
// compares them with its own limit. While an upstream is in its slow start, its limit grows
// with its weight, and is 1 at least.
type MaxRequests struct {
	// The limit of each upstream that `upstreams` does not name, from 1 to 1,000,000.
	// Default: none.
	Default *int `json:"default,omitempty"`

	// The limits of single upstreams, from 1 to 1,000,000, by address as in the list of
	// upstreams. With a range of addresses, such as `10.2.0.0/16`, it is the limit of each
	// upstream that has one of them. Default: none.
	Upstreams map[string]int `json:"upstreams,omitempty"`
}

// resolve returns the limit of all upstreams, 0 for none, and those by name. It can be
// nil.
func (m *MaxRequests) resolve() (of int, byName map[string]int, err error) {
	if m == nil {
		return 0, nil, nil
	}
	if m.Default == nil && len(m.Upstreams) == 0 {
		return 0, nil, errors.New("max_requests needs default, upstreams, or both")
	}
	if m.Default != nil {
		of = *m.Default
		if err := limits.Limit("max_requests: default", of); err != nil {
			return 0, nil, err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(m.Upstreams)) {
		if err := limits.Limit("max_requests: upstreams: "+name, m.Upstreams[name]); err != nil {
			return 0, nil, err
		}
	}
	return of, m.Upstreams, nil
}

// Queue is where requests wait while all upstreams that could take them are at their
// limits. The first request that came is the first that goes on.
type Queue struct {
	// How long a request waits at most, from `1ms` to `24h`. After that it is answered 503.
	// The time counts against `lb_try_duration`. Required.
	Timeout caddy.Duration `json:"timeout,omitempty"`

	// How many requests wait at most, from 1 to 100,000. Further ones are answered 503 at
	// once. Default: 1000.
	Length *int `json:"length,omitempty"`
}

// resolve returns what pools need of it. It can be nil.
func (q *Queue) resolve() (pool.Queue, error) {
	if q == nil {
		return pool.Queue{}, nil
	}
	resolved := pool.Queue{Timeout: time.Duration(q.Timeout), Length: limits.DefaultQueueLength}
	if err := limits.QueueTimeout(resolved.Timeout); err != nil {
		return pool.Queue{}, err
	}
	if q.Length != nil {
		resolved.Length = *q.Length
		if err := limits.QueueLength(resolved.Length); err != nil {
			return pool.Queue{}, err
		}
	}
	return resolved, nil
}

var errQueueNoLimit = errors.New("queue has no meaning without a limit, since no upstream is ever full: add max_requests, or unhealthy_request_count beside lb_policy")

// hasLimit reports whether the config limits the requests of any upstream.
func hasLimit(s *Selection) bool {
	checks := s.proxy.HealthChecks
	return s.MaxRequests != nil || checks != nil && checks.Passive != nil && checks.Passive.UnhealthyRequestCount > 0 ||
		slices.ContainsFunc(s.proxy.Upstreams, func(u *reverseproxy.Upstream) bool { return u.MaxRequests > 0 })
}

// Sticky binds clients to upstreams by a cookie: the requests of a client go to the same
// upstream while that is up, also while it drains. New clients are placed as without it.
// The cookie is that of Caddy's own policy `cookie`, so each understands the other's.
type Sticky struct {
	// The name of the cookie: letters, digits and some signs, as RFC 6265 has it. It
	// cannot begin with `__Host-`, `__Secure-` or `__Http-`, since browsers drop such
	// cookies wherever they are set without TLS. Pools of one site need names that
	// differ. Default: `lb`.
	Cookie string `json:"cookie,omitempty"`

	// A text that is known to this server only, with which values of the cookie are made.
	// Without one, there is a warning at load: anyone could compute a value, and so choose
	// an upstream. All servers of a fleet need the same. Global placeholders can be used,
	// such as `{env.LB_SECRET}` and `{file./run/secrets/lb}`; a brace that begins none is
	// written `\{`.
	Secret string `json:"secret,omitempty"`

	// How long browsers keep the cookie after it was set, from `1s` to 400 days. Default:
	// until the browser ends.
	MaxAge caddy.Duration `json:"max_age,omitempty"`
}

var errStickySelect = errors.New("sticky cannot be combined with select, which decides by itself where a client goes; remove one of them, or write select cookie")

// name returns the name of the cookie.
func (c *Sticky) name() string { return cmp.Or(c.Cookie, session.DefaultName) }

// resolve returns what pools need of it. It can be nil.
func (c *Sticky) resolve() (*session.Cookie, error) {
	if c == nil {
		return nil, nil
	}
	cookie := &session.Cookie{Name: c.name(), MaxAge: time.Duration(c.MaxAge)}
	if err := limits.CookieName(cookie.Name); err != nil {
		return nil, err
	}
	if c.MaxAge != 0 {
		if err := limits.MaxAge(cookie.MaxAge); err != nil {
			return nil, err
		}
	}
	if c.Secret == "" {
		return cookie, nil
	}
	var err error
	cookie.Secret, err = session.ResolveSecret(c.Secret)
	return cookie, err
}

// SlowStart is how upstreams that come back, or that join others, get requests little
// by little. The weight of such an upstream grows evenly from the floor to its full
// size, as long as another upstream of its group (primaries, or backups) serves and has
// finished its own slow start. A pool whose upstreams start together has none.
type SlowStart struct {
	// How long it takes to the full weight, from `10ms` to `24h`. Required.
	Window caddy.Duration `json:"window,omitempty"`

	// The share of the weight that it begins with, rounded up to a multiple of
	// 5 %, and 5 % at least. Default: `10%`.
	Floor string `json:"floor,omitempty"`
}

// defaultFloor is where a slow start begins, as a share of the weight.
const defaultFloor = 0.1

// resolve returns the window and the floor, or what is wrong with them.
func (c *SlowStart) resolve() (window time.Duration, floor float64, err error) {
	window, floor = time.Duration(c.Window), defaultFloor
	if err := limits.RampWindow(window); err != nil {
		return 0, 0, err
	}
	if c.Floor != "" {
		percent, err := limits.Percent("slow_start: floor", c.Floor)
		if err != nil {
			return 0, 0, err
		}
		floor = percent / 100
	}
	return window, floor, nil
}

// resolveFailOpen reads when health is ignored. Nothing is none_up.
func resolveFailOpen(text string) (pool.FailOpen, error) {
	f := pool.FailOpen{Never: text == "off", Text: text}
	if text == "" {
		return f, nil
	}
	var err error
	f.Percent, f.Number, err = limits.FailOpen(text)
	return f, err
}

var errSpillNoBackups = errors.New("spill has no meaning without backup, since there is no group that could help")

// resolveSpill returns below which percentage of the weight the next group helps, 0 for
// never.
func resolveSpill(s *Selection) (percent float64, err error) {
	if s.Spill == "" {
		return 0, nil
	}
	if len(s.Backups) == 0 {
		return 0, errSpillNoBackups
	}
	return limits.Spill(s.Spill)
}

// warnSticky warns of cookies that do not bind clients as they should.
func warnSticky(s *Selection, ctx caddy.Context, name string) {
	if s.Sticky == nil {
		return
	}
	if s.Sticky.Secret == "" {
		ctx.Logger().Warn("sticky has no secret, so anyone could compute the cookie of any upstream and choose where to go; set the option secret of sticky", zap.String("pool", name))
	}
	for _, shared := range s.app.names.SharedCookies(ctx, readPool) {
		ctx.Logger().Warn("pools of one server bind clients by one cookie, so a client that uses both loses its upstream in one whenever the other sets it; give each pool a name of its own after sticky",
			zap.String("cookie", shared.Cookie), zap.String("server", shared.Server), zap.Strings("pools", view.Few(shared.Pools)))
	}
}

// provisionUpstreams resolves what is configured for single upstreams.
func provisionUpstreams(s *Selection, config *balancer.Config) error {
	listed, err := upstreamname.List(s.proxy)
	if err != nil {
		return err
	}
	weights, err := resolveWeights(s.Weights)
	if err != nil {
		return fmt.Errorf("weights: %v", err)
	}
	if config.Weights, err = listed.Weights(weights); err != nil {
		return fmt.Errorf("weights: %v", err)
	}
	if slices.ContainsFunc(s.Backups, func(group []string) bool { return len(group) == 0 }) {
		return errors.New("backups: a group must not be empty")
	}
	if config.Groups, err = listed.Groups(s.Backups); err != nil {
		return fmt.Errorf("backups: %v", err)
	}
	var requests map[string]int
	if config.Limit, requests, err = s.MaxRequests.resolve(); err != nil {
		return err
	}
	if config.Limits, err = listed.Numbers(requests); err != nil {
		return fmt.Errorf("max_requests: upstreams: %v", err)
	}
	if primaries, known := listed.Primaries(config.Weights, config.Groups); known && config.Rules.FailOpen.Number > primaries {
		config.Logger.Warn("fail_open is a number above that of the primaries, so health is ignored as soon as one of them does not serve, unless a backup does; "+
			"a share of them ends in a percent sign", zap.String("fail_open", s.FailOpen), zap.Int("primaries", primaries))
	}
	return nil
}
