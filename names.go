// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/kinds"
	"github.com/caddy-alive/caddy-alive/internal/limits"
	"github.com/caddy-alive/caddy-alive/internal/placeholder"
	"github.com/caddy-alive/caddy-alive/internal/pool"
	"github.com/caddy-alive/caddy-alive/internal/poolname"
	"github.com/caddy-alive/caddy-alive/internal/redact"
	"github.com/caddy-alive/caddy-alive/internal/upstreamname"
	"github.com/caddy-alive/caddy-alive/internal/witness"
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
	f.Percent, err = limits.FailOpen(text)
	return f, err
}

// readPool reads what decides about the name of a pool from a config.
func readPool(policy, handler []byte) (poolname.Pool, error) {
	s, h := new(Selection), new(reverseproxy.Handler)
	if err := errors.Join(json.Unmarshal(policy, s), json.Unmarshal(handler, h)); err != nil {
		return poolname.Pool{}, err
	}
	return identifyPool(s, h), nil
}

// identifyPool returns what decides about the name of the pool of a policy. Its key has
// all that is configured about which upstreams get requests. Nothing must be provisioned
// yet.
func identifyPool(s *Selection, h *reverseproxy.Handler) poolname.Pool {
	type check struct {
		Probe    string
		Settings any
		Where    []any
	}
	different := struct {
		Checks   []string
		Weights  map[string]string
		Backups  []string
		FailOpen string
		Select   any
		Source   any
		Stale    *caddy.Duration
		Limits   []int
		Witness  witness.Settings
		Health   *reverseproxy.HealthChecks
		Breaker  any
	}{
		FailOpen: cmp.Or(s.FailOpen, "none_up"),
		Select:   poolname.Decode(s.SelectRaw),
		Source:   poolname.Decode(h.DynamicUpstreamsRaw),
		Stale:    s.Stale,
		Health:   h.HealthChecks,
		Breaker:  poolname.Decode(h.CBRaw),
		Weights:  make(map[string]string),
	}
	checks := s.Checks
	if len(checks) == 0 {
		checks = []*HealthCheck{defaultCheck()}
	}
	for _, c := range checks {
		if c == nil {
			continue // an error, as soon as it is provisioned
		}
		_, probe, _ := kinds.Identify(c.ProbeRaw)
		settings, _ := c.resolve()
		encoded, _ := json.Marshal(check{probe, settings, []any{c.Port, c.Address, c.ProxyProtocol, c.KeepConnection, c.defaultHost(h)}})
		different.Checks = append(different.Checks, string(encoded))
	}
	slices.Sort(different.Checks)
	for name, weight := range s.Weights {
		share := string(weight)
		if number, err := weight.resolve(); err == nil {
			share = fmt.Sprint(number)
		}
		for _, address := range upstreamname.Addresses(name) {
			if share != "1" {
				different.Weights[address] = share
			}
		}
	}
	for _, name := range s.Backups {
		different.Backups = append(different.Backups, upstreamname.Addresses(name)...)
	}
	slices.Sort(different.Backups)
	different.Backups = slices.Compact(different.Backups)
	dials := make([]string, 0, len(h.Upstreams))
	for _, u := range h.Upstreams {
		dials = append(dials, u.Dial)
		different.Limits = append(different.Limits, u.MaxRequests)
	}
	different.Witness, _ = resolveWitness(s.Observe, s.Eject)
	encoded, _ := json.Marshal(different) // what cannot be encoded was never decoded
	return poolname.Pool{Given: s.Name, Default: poolname.Default(dials, h.DynamicUpstreamsRaw), Key: sha256.Sum256(encoded)}
}
