// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// maxWeight is the largest weight of an upstream.
const maxWeight = 256

// gather makes the members of the proxy's own list, and their watches.
func (s *Selection) gather() error {
	s.byDial = make(map[string]*member)
	for _, u := range s.upstreams {
		// one that is listed twice counts twice, but is probed once
		if s.byDial[u.Dial] == nil {
			watches, err := s.watch(u.Dial, 0, false)
			if err != nil {
				return fmt.Errorf("upstream %s: %v", u.Dial, err)
			}
			s.byDial[u.Dial] = &member{address: shownAddress(u.Dial), watches: watches, weight: 1}
		}
		s.members = append(s.members, s.byDial[u.Dial])
	}

	weighed := make(map[*member]string)
	for _, name := range slices.Sorted(maps.Keys(s.Weights)) {
		members, err := s.named(name)
		if err != nil {
			return fmt.Errorf("weights: %v", err)
		}
		weight := s.Weights[name]
		if weight < 0 || weight > maxWeight {
			return fmt.Errorf("weights: %s: a weight must be a whole number from 0 to %d; got %d", name, maxWeight, weight)
		}
		for _, m := range members {
			if other, given := weighed[m]; given {
				return fmt.Errorf("weights: %s and %s are the same upstream", other, name)
			}
			m.weight, weighed[m] = weight, name
		}
	}
	for _, name := range s.Backups {
		members, err := s.named(name)
		if err != nil {
			return fmt.Errorf("backups: %v", err)
		}
		for _, m := range members {
			m.backup = true
		}
	}
	if len(s.Backups) > 0 && s.proxy.DynamicUpstreamsRaw == nil && !slices.ContainsFunc(s.members, func(m *member) bool { return !m.backup }) {
		return errors.New("backups: every upstream is a backup; leave out at least one, to be backed up")
	}
	return nil
}

// shownAddress returns a dial address as operators see it and name it.
func shownAddress(dial string) string { return caddy.NewReplacer().ReplaceKnown(dial, "") }

// provisionName checks the name of the pool, or finds one.
func (s *Selection) provisionName() error {
	if len(s.Name) > maxName || strings.ContainsFunc(s.Name, unicode.IsControl) || !utf8.ValidString(s.Name) {
		return fmt.Errorf("name must be one line of %d bytes at most", maxName)
	}
	s.pool = s.Name
	if s.pool == "" {
		names := make([]string, 0, len(s.upstreams))
		for i, u := range s.upstreams {
			names = append(names, shownAddress(u.Dial))
			if !utf8.ValidString(names[i]) {
				return fmt.Errorf("the address of upstream %d is not valid UTF-8: %q", i, names[i])
			}
		}
		if source := s.proxy.DynamicUpstreamsRaw; source != nil {
			names = append(names, sourceName(source))
		}
		s.pool = bounded(strings.Join(names, " "))
	}
	s.rules.operations, s.rules.pool = s.app.operations, s.pool
	return nil
}

// bounded shortens what is too long for a name, so that what differs still does.
func bounded(name string) string {
	if len(name) <= maxName {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	end := fmt.Sprintf("… #%x", sum[:4])
	return strings.ToValidUTF8(name[:maxName-len(end)], "") + end
}

// maxName bounds the name of a pool, in bytes.
const maxName = 200

// sourceName names a dynamic source by its kind and what it asks for.
func sourceName(source json.RawMessage) string {
	var options map[string]any
	_ = json.Unmarshal(source, &options) // what is no JSON never loads
	name := []string{"dynamic"}
	for _, key := range []string{"source", "service", "proto", "name", "port"} {
		if text, ok := options[key].(string); ok && text != "" {
			name = append(name, shownAddress(text))
		}
	}
	return strings.Join(name, " ")
}

// watch sets up the watches of the upstream at a dial address, none if what it
// is depends on the request. If probes run, the first one follows after the
// delay, and withAll is what [health.Target.Begin] says.
func (s *Selection) watch(dial string, delay time.Duration, withAll bool) ([]*watch, error) {
	address := caddy.NewReplacer().ReplaceKnown(dial, "")
	if address == "" {
		return nil, errors.New("its placeholders are empty")
	}
	provisioned := s.current.Load() != nil
	unchecked := func(fields ...zap.Field) {
		if provisioned && s.warned.Swap(true) {
			return // so would be thousands more
		}
		s.logger.Warn("upstream cannot be checked: its address or TLS server name depends on the request; it counts as alive",
			append(fields, zap.String("upstream", dial))...)
	}
	if strings.Contains(address, "{") {
		unchecked()
		return nil, nil
	}
	upstream, err := parseUpstream(address)
	if err != nil {
		return nil, err
	}

	s.watchesMu.Lock()
	defer s.watchesMu.Unlock()
	var watches []*watch
	for _, check := range s.Checks {
		to, err := s.transport.to(upstream, address, check)
		if errors.Is(err, errPerRequest) {
			unchecked(zap.String("check", check.label))
			continue
		}
		var w *watch
		if err == nil {
			w, err = newWatch(check, to, s.logger, s.app.announcer())
		}
		if err != nil {
			for _, w := range watches {
				err = errors.Join(err, w.forget())
			}
			return nil, fmt.Errorf("check '%s': %w", check.label, err)
		}
		watches = append(watches, w)
	}
	s.watches = append(s.watches, watches...)
	if provisioned { // else all are followed when the pool is complete
		for _, w := range watches {
			w.past = func() bool { return s.dynamic.isPast(dial) }
			w.follow(s.refresh)
		}
	}
	if s.running.Load() {
		paused := s.rules.operations.of(shownAddress(dial)).mode() == modeMaintenance
		for _, w := range watches {
			w.target.Begin(withAll)
			w.target.Pause(paused)
			w.attach(delay % w.key.settings.Interval)
		}
	}
	return watches, nil
}

// unwatch ends watches. It may wait for probes to be cut off, for all of them at once.
func (s *Selection) unwatch(watches []*watch) {
	s.watchesMu.Lock()
	s.watches = slices.DeleteFunc(s.watches, func(w *watch) bool { return slices.Contains(watches, w) })
	s.watchesMu.Unlock()
	var ending sync.WaitGroup
	for _, w := range watches {
		ending.Go(w.release)
	}
	ending.Wait()
	for _, w := range watches {
		if err := w.forget(); err != nil {
			s.logger.Error("forgetting an upstream", zap.Error(err))
		}
	}
}

// resumeDynamic prepares for upstreams that requests bring along, and goes on
// watching those that the same policy of an earlier config did.
func (s *Selection) resumeDynamic() error {
	// without a source, it can only be another policy that brings upstreams
	key := "policy over " + strings.Join(slices.Sorted(maps.Keys(s.byDial)), " ")
	if source := s.proxy.DynamicUpstreamsRaw; source != nil {
		key = "source " + string(source)
		if err := s.validateDynamic(); err != nil {
			return fmt.Errorf("dynamic upstreams: %v", err)
		}
	}
	list, _, err := watchLists.LoadOrNew(key, func() (caddy.Destructor, error) {
		return newWatchList(), nil
	})
	if err != nil {
		return err
	}
	s.dynamic.key, s.dynamic.list = key, list.(*watchList)
	s.dynamic.resume()
	return nil
}

// validateDynamic finds out whether the checks can work over the proxy's
// transport, before the first upstream is known: any address stands for all.
func (s *Selection) validateDynamic() error {
	const address = "localhost:80"
	upstream, err := parseUpstream(address)
	if err != nil {
		return err
	}
	for _, check := range s.Checks {
		to, err := s.transport.to(upstream, address, check)
		if err == nil {
			err = check.validate(to)
		}
		if err != nil && !errors.Is(err, errPerRequest) {
			return fmt.Errorf("check '%s': %v", check.label, err)
		}
	}
	return nil
}

// named returns the members that an option means by a name: what stands in the
// proxy's list, or another way to write it.
func (s *Selection) named(name string) ([]*member, error) {
	dials, err := dialAddresses(name)
	if err != nil {
		return nil, fmt.Errorf("%s: %v", name, err)
	}
	members := make([]*member, 0, len(dials))
	for _, dial := range dials {
		m := s.byDial[dial]
		if m == nil && len(s.upstreams) == 0 {
			return nil, fmt.Errorf("%s: only upstreams in the proxy's own list can be named, and it has none", name)
		}
		if m == nil {
			return nil, fmt.Errorf("%s is not one of the upstreams, which are %s", name, strings.Join(s.names(), ", "))
		}
		members = append(members, m)
	}
	return members, nil
}

// dialAddresses returns what Caddy makes of an upstream as the reverse_proxy
// directive names it: app1 is app1:80, https://app1 is app1:443, and a range of
// ports is all of them. Caddy's own parser says so.
func dialAddresses(name string) ([]string, error) {
	var h reverseproxy.Handler
	tokens := []caddyfile.Token{{Text: "reverse_proxy", Line: 1}, {Text: name, Line: 1}}
	if err := h.UnmarshalCaddyfile(caddyfile.NewDispenser(tokens)); err != nil || name == "" {
		return nil, errors.New("not an address as reverse_proxy names upstreams")
	}
	dials := make([]string, 0, len(h.Upstreams))
	for _, u := range h.Upstreams {
		dials = append(dials, u.Dial)
	}
	return dials, nil
}

// names returns the addresses of the proxy's own list, a few if they are many.
func (s *Selection) names() []string {
	names := make([]string, 0, len(s.upstreams))
	for _, u := range s.upstreams {
		names = append(names, u.Dial)
	}
	return aFew(names)
}

// aFew returns names that fit into a line.
func aFew(names []string) []string {
	const most = 10
	if len(names) <= most {
		return names
	}
	return append(slices.Clone(names[:most]), fmt.Sprintf("and %d more", len(names)-most))
}
