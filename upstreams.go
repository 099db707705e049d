// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/monitor"
	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/shared"
	"github.com/caddy-alive/caddy-alive/internal/telemetry"
	"github.com/caddy-alive/caddy-alive/internal/view"
)

// gather makes the members of the proxy's own list, and their watches.
func (s *Selection) gather() error {
	s.byDial = make(map[string]*member)
	for _, u := range s.upstreams {
		// one that is listed twice counts twice, but is probed once
		if s.byDial[u.Dial] == nil {
			address := monitor.DisplayAddress(u.Dial)
			if err := checkSpaces(address); err != nil {
				return fmt.Errorf("upstream %s: %v", u.Dial, err)
			}
			watches, untold, err := s.watch(u.Dial, 0, false)
			for _, tell := range untold {
				tell()
			}
			if err != nil {
				return fmt.Errorf("upstream %s: %v", u.Dial, err)
			}
			s.byDial[u.Dial] = &member{address: address, watches: watches, weight: 1}
		}
		s.members = append(s.members, s.byDial[u.Dial])
	}
	if err := s.gatherWeights(); err != nil {
		return fmt.Errorf("weights: %v", err)
	}
	if err := s.gatherBackups(); err != nil {
		return fmt.Errorf("backups: %v", err)
	}
	return nil
}

// gatherWeights gives members the weights that are configured.
func (s *Selection) gatherWeights() error {
	weighed := make(map[*member]string)
	for _, name := range slices.Sorted(maps.Keys(s.Weights)) {
		members, err := s.named(name)
		if err != nil {
			return err
		}
		weight, err := s.Weights[name].resolve()
		if err != nil {
			return fmt.Errorf("%s: %v", name, err)
		}
		for _, m := range members {
			if other, given := weighed[m]; given {
				return fmt.Errorf("%s and %s are the same upstream", other, name)
			}
			m.weight, weighed[m] = weight, name
		}
	}
	if len(s.members) > 0 && s.proxy.DynamicUpstreamsRaw == nil && !slices.ContainsFunc(s.members, func(m *member) bool { return m.weight > 0 }) {
		return errors.New("every upstream has the weight 0, so none would ever get a request; leave out at least one, or give it another weight")
	}
	return nil
}

// gatherBackups makes those members backups that are configured as such.
func (s *Selection) gatherBackups() error {
	named := make(map[*member]string)
	for _, name := range s.Backups {
		members, err := s.named(name)
		if err != nil {
			return err
		}
		for _, m := range members {
			if other, given := named[m]; given && other != name {
				return fmt.Errorf("%s and %s are the same upstream", other, name)
			}
			m.backup, named[m] = true, name
		}
	}
	if len(s.Backups) > 0 && s.proxy.DynamicUpstreamsRaw == nil && !slices.ContainsFunc(s.members, func(m *member) bool { return !m.backup }) {
		return errors.New("every upstream is a backup; leave out at least one, to be backed up")
	}
	return nil
}

// checkSpaces rejects an address with spaces, which no connection can be made to,
// unless they are part of the path of a unix socket.
func checkSpaces(address string) error {
	network, _, _, err := caddy.SplitNetworkAddress(address)
	if err == nil && caddy.IsUnixNetwork(network) {
		return nil
	}
	outside := placeholder.ReplaceAllString(address, "")
	if strings.ContainsFunc(outside, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }) {
		return errors.New("an address has no spaces in it")
	}
	return nil
}

// placeholder is what can stand for a part of an address.
var placeholder = regexp.MustCompile(`\{[^{}]*\}`)

// watch sets up the monitors of the upstream at a dial address, none if how it is reached
// depends on the request. If probes run, the first one follows after the delay, and withAll
// is what [health.Target.Begin] says. Untold are log lines, to be written once the caller
// holds no lock.
func (s *Selection) watch(dial string, delay time.Duration, withAll bool) (watches []*monitor.Monitor, untold []func(), err error) {
	provisioned := s.current.Load() != nil
	unchecked := func(fields ...zap.Field) {
		if provisioned && s.warned.Swap(true) {
			return // so would be thousands more
		}
		untold = append(untold, func() {
			s.logger.Warn("upstream cannot be checked: its address or TLS server name depends on the request or can change at any time; it counts as alive",
				append(fields, zap.String("upstream", dial))...)
		})
	}
	upstream, err := monitor.ParseUpstream(dial)
	if errors.Is(err, monitor.ErrPerRequest) {
		unchecked()
		return nil, untold, nil
	}
	if err != nil {
		return nil, nil, err
	}
	hooks := s.hooks()
	for _, check := range s.Checks {
		w, err := s.transport.Open(upstream, &check.resolved, hooks)
		if errors.Is(err, monitor.ErrPerRequest) {
			unchecked(zap.String("check", check.resolved.Label))
			continue
		}
		if err != nil {
			for _, w := range watches {
				err = errors.Join(err, w.Release())
			}
			return nil, untold, fmt.Errorf("check '%s': %w", check.resolved.Label, err)
		}
		watches = append(watches, w)
	}
	if provisioned { // else all are subscribed to when the pool is complete
		for _, w := range watches {
			w.Subscribe(s.refresh)
		}
	}
	s.watchesMu.Lock()
	defer s.watchesMu.Unlock()
	s.watches = append(s.watches, watches...)
	if s.running.Load() {
		paused := s.rules.operations.Of(monitor.DisplayAddress(dial)).ModeNow() == settings.Maintenance
		for _, w := range watches {
			w.Target.Begin(withAll)
			w.Target.Pause(paused)
			w.Start(delay % w.Check.Settings.Interval)
		}
	}
	return watches, untold, nil
}

// hooks connect the monitors of s to its log, the counters and the events.
func (s *Selection) hooks() monitor.Hooks {
	events := s.app.eventQueue()
	return monitor.Hooks{
		Logger:   s.logger,
		Counters: openCounters,
		Emit: func(upstream string, check *monitor.Check, change health.Transition) {
			events.StatusChanged(upstream, check.Label, change)
		},
		Stale: s.isStale,
	}
}

// openCounters returns the counters of a check of an upstream.
func openCounters(upstream string, check *monitor.Check) (monitor.Counters, error) {
	return telemetry.NewCheckCounters(upstream, check.Label, check.Kind)
}

// unwatch ends watches. It may wait for probes to be cut off, for all of them at once.
func (s *Selection) unwatch(watches []*monitor.Monitor) {
	s.watchesMu.Lock()
	s.watches = slices.DeleteFunc(s.watches, func(w *monitor.Monitor) bool { return slices.Contains(watches, w) })
	s.watchesMu.Unlock()
	monitor.StopAll(watches)
	for _, w := range watches {
		if err := w.Release(); err != nil {
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
	list, _, err := shared.WatchLists.LoadOrNew(key, func() (caddy.Destructor, error) {
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
	upstream, err := monitor.ParseUpstream("localhost:80")
	if err != nil {
		return err
	}
	for _, check := range s.Checks {
		_, err := s.transport.Route(upstream, &check.resolved)
		if err != nil && !errors.Is(err, monitor.ErrPerRequest) {
			return fmt.Errorf("check '%s': %v", check.resolved.Label, err)
		}
	}
	return nil
}

// named returns the members that an option means by a name: what stands in the
// proxy's list, another way to write it, or what its placeholders stand for.
func (s *Selection) named(name string) ([]*member, error) {
	if len(s.upstreams) == 0 {
		return nil, fmt.Errorf("%s: only upstreams in the proxy's own list can be named, and it has none", name)
	}
	members, err := s.membersAt(name)
	if resolved := monitor.DisplayAddress(name); len(members) == 0 && err == nil && resolved != name {
		if resolved == "" {
			return nil, fmt.Errorf("%s: its placeholders are empty", name)
		}
		members, err = s.membersAt(resolved)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %v", name, err)
	}
	if len(members) == 0 {
		known := make([]string, 0, len(s.upstreams))
		for _, u := range s.upstreams {
			known = append(known, u.Dial)
		}
		return nil, fmt.Errorf("%s is not one of the upstreams, which are %s%s", name, strings.Join(s.names(), ", "), didYouMean(name, known))
	}
	return members, nil
}

// membersAt returns the members that a name means: all of a range of ports, or
// none.
func (s *Selection) membersAt(name string) ([]*member, error) {
	dials, err := dialAddresses(name)
	if err != nil {
		return nil, err
	}
	var members []*member
	for _, dial := range dials {
		at := s.byDial[dial]
		if at != nil {
			members = append(members, at)
			continue
		}
		found := false
		for _, written := range slices.Sorted(maps.Keys(s.byDial)) {
			// an address without a port is not the one with Caddy's default
			if m := s.byDial[written]; m.address == dial || m.address == name {
				members, found = append(members, m), true
			}
		}
		if !found {
			return nil, nil
		}
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
		if err := checkSpaces(u.Dial); err != nil {
			return nil, err
		}
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
func aFew(names []string) []string { return view.Few(names) }
