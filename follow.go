// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"maps"
	"slices"

	"github.com/caddy-alive/caddy-alive/internal/settings"
)

// forget takes back what was set for an address that a dynamic source does not bring
// any more. In a fleet it stays: another instance may have the address. An app that is
// nil has nothing to forget.
func (a *App) forget(address string) {
	if a == nil || a.keeper.IsFleet() || a.operations.Of(address) == nil {
		return
	}
	if a.has(address) {
		return
	}
	a.operations.Change(address, settings.Change{Clear: true})
}

// has reports whether any pool has an address.
func (a *App) has(address string) bool {
	return slices.ContainsFunc(a.all(), func(s *Selection) bool { return s.byAddress(address) != nil })
}

// applyMode has the policy follow a change of the setting of an address: targets
// pause in maintenance, and requests go by a new snapshot.
func (s *Selection) applyMode(address string) {
	m := s.byAddress(address)
	if m == nil {
		return
	}
	s.pause(m)
	s.renew()
}

// applyModes pauses the targets of all that are in maintenance, and resumes the
// others.
func (s *Selection) applyModes() {
	for _, m := range s.allMembers() {
		s.pause(m)
	}
}

// allMembers returns those of the proxy's own list, and those that requests brought.
func (s *Selection) allMembers() []*member {
	members := slices.Collect(maps.Values(s.byDial))
	if s.dynamic != nil {
		members = append(members, s.dynamic.all()...)
	}
	return members
}

// byAddress returns the member at an address as operators name it, nil if there is
// none.
func (s *Selection) byAddress(address string) *member {
	if m := s.byDial[address]; m != nil && m.address == address {
		return m
	}
	s.indexing.Do(func() {
		for dial, m := range s.byDial {
			if m.address != dial {
				if s.byShown == nil {
					s.byShown = make(map[string]*member)
				}
				s.byShown[m.address] = m
			}
		}
	})
	if m := s.byShown[address]; m != nil {
		return m
	}
	if s.dynamic != nil {
		return s.dynamic.memberShownAs(address)
	}
	return nil
}

// pause has probes of a member go on or not, as its mode says. Several may do so at
// once, and the last of them follows the last change. A target that runs for another
// config is left alone until this one has started: it may be of another fleet, and it
// may never start.
func (s *Selection) pause(m *member) {
	o := s.rules.operations
	for {
		yet := s.running.Load() && !s.app.isStarting()
		set := o.Of(m.address)
		for _, w := range m.watches {
			if yet || !w.Target.Running() {
				w.Target.Pause(set.ModeNow() == settings.Maintenance)
			}
		}
		if o.Of(m.address) == set {
			return
		}
	}
}

// applySetting has all policies that a setting concerns follow it.
func (a *App) applySetting(address string) {
	for _, s := range a.all() {
		s.applyMode(address)
	}
}
