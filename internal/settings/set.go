// SPDX-License-Identifier: Apache-2.0

// Package settings has the modes and weights that operators set at run time: a Set in
// memory, and a Store that keeps it in Caddy's storage. It does not know pools or
// configs: those subscribe to the changes of a Set.
//
// Locks: Set.mu and Store.mu are never held together, and neither is held while a
// subscriber, the storage or a log line runs.
package settings

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-alive/caddy-alive/internal/shared"
)

// Set is the settings that all configs of one scope share: one fleet, or this instance.
// It outlives reloads.
type Set struct {
	// current is never changed, but replaced.
	current  atomic.Pointer[map[string]*Setting]
	revision atomic.Uint64

	mu sync.Mutex // guards what follows, and replacements of current
	// unstored are the addresses whose settings are yet to be stored, with whether that is
	// news to others: not if the storage has lost what they know.
	unstored    map[string]bool
	subscribers map[*func(address string)]struct{}
}

// NewSet returns an empty one.
func NewSet() *Set {
	s := &Set{unstored: make(map[string]bool), subscribers: make(map[*func(string)]struct{})}
	s.current.Store(new(map[string]*Setting))
	return s
}

// Open returns the set of a scope, which all of the process share until each has
// called Close.
func Open(scope string) (*Set, error) {
	set, _, err := shared.Settings.LoadOrNew(scope, func() (caddy.Destructor, error) { return NewSet(), nil })
	if err != nil {
		return nil, err
	}
	return set.(*Set), nil
}

// Close takes back Open.
func Close(scope string) error {
	_, err := shared.Settings.Delete(scope)
	return err
}

// Destruct has nothing to do.
func (*Set) Destruct() error { return nil }

// Of returns the setting of an address, nil if there is none. It never waits.
func (s *Set) Of(address string) *Setting {
	if s == nil {
		return nil
	}
	return s.All()[address]
}

// All returns all settings by address. The map must not be changed.
func (s *Set) All() map[string]*Setting { return *s.current.Load() }

// Revision changes with every change that the list shows: of a mode or weight, and of
// whether it is stored.
func (s *Set) Revision() uint64 { return s.revision.Load() }

// Subscribe makes the set call changed with the address after every change of a setting,
// with no lock held, until cancel is called. A call that is under way at that moment may
// still end later.
func (s *Set) Subscribe(changed func(address string)) (cancel func()) {
	key := &changed
	s.mu.Lock()
	defer s.mu.Unlock()
	s.subscribers[key] = struct{}{}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.subscribers, key)
	}
}

// notify calls all subscribers.
func (s *Set) notify(address string) {
	s.revision.Add(1)
	s.mu.Lock()
	subscribers := slices.Collect(maps.Keys(s.subscribers))
	s.mu.Unlock()
	for _, changed := range subscribers {
		(*changed)(address)
	}
	s.revision.Add(1) // a list built meanwhile may be outdated: some subscribers had not run
}

// Change is what an operator wants of an address. A part that is nil stays as it is.
type Change struct {
	Mode   *Mode
	Rebind bool   // with the mode drain: clients that are bound to the upstream move
	Pool   string // of the weight
	Weight **int  // a pointer to nil: that of the config again
	Clear  bool   // takes back everything, instead
}

// Change changes a setting, and returns it once all subscribers have followed. It is
// yet to be stored then.
func (s *Set) Change(address string, c Change) *Setting {
	s.mu.Lock()
	known := s.Of(address)
	now := time.Now().UTC()
	if known != nil && !now.After(known.Newest()) {
		now = known.Newest().Add(1) // the clock of another instance is ahead of this one
	}
	changed := &Setting{Address: address}
	if c.Clear && known != nil {
		changed.Mode, changed.Changed, changed.Weights = Ready, now, make(map[string]Weight)
		for pool := range known.Weights {
			changed.Weights[pool] = Weight{Changed: now}
		}
	}
	if c.Mode != nil {
		changed.Mode, changed.Rebind, changed.Changed = *c.Mode, c.Rebind && *c.Mode == Drain, now
	}
	if c.Weight != nil {
		changed.Weights = map[string]Weight{c.Pool: {Weight: *c.Weight, Changed: now}}
	}
	changed = Merge(known, changed)
	s.replace(changed)
	s.unstored[address] = true
	s.mu.Unlock()
	s.notify(address)
	return changed
}

// MarkPresence notes since when no pool has an address, or that one has it again.
func (s *Set) MarkPresence(address string, present bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	known := s.Of(address)
	if known == nil {
		return
	}
	marked := *known
	now := later(time.Now().UTC(), later(known.Left, known.Returned).Add(1))
	if present {
		marked.Returned = now
	} else {
		marked.Left = now
	}
	s.replace(&marked)
	s.unstored[address] = true
}

// MergeStored takes over what is newer in stored settings than here. Parts that are older
// in the storage are marked to be stored. It returns the stored ones in which anything
// was newer, once all subscribers have followed.
func (s *Set) MergeStored(stored ...*Setting) (newer []*Setting) {
	if len(stored) == 0 {
		return nil
	}
	s.mu.Lock()
	current := s.All()
	for _, other := range stored {
		known := current[other.Address]
		all := Merge(known, other)
		if known == nil || !all.equal(known) {
			if len(newer) == 0 {
				current = cloned(current)
			}
			current[other.Address] = all
			newer = append(newer, other)
		}
		if !all.equal(other) {
			s.unstored[other.Address] = true
		}
	}
	s.current.Store(&current)
	s.mu.Unlock()
	for _, other := range newer {
		s.notify(other.Address)
	}
	return newer
}

// replace puts a setting in place of that of the same address. s.mu must be held.
func (s *Set) replace(setting *Setting) {
	all := cloned(s.All())
	all[setting.Address] = setting
	s.current.Store(&all)
}

func cloned(settings map[string]*Setting) map[string]*Setting {
	if settings == nil {
		return make(map[string]*Setting)
	}
	return maps.Clone(settings)
}

// forget drops the setting of an address, if it is still this one.
func (s *Set) forget(setting *Setting) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.Of(setting.Address) != setting {
		return
	}
	all := maps.Clone(s.All())
	delete(all, setting.Address)
	s.current.Store(&all)
	delete(s.unstored, setting.Address)
	s.revision.Add(1)
}

// storeAllExcept marks all settings to be stored that a storage does not list: it may be
// another storage than before, or it lost them.
func (s *Set) storeAllExcept(listed map[string]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for address := range s.All() {
		if _, noted := s.unstored[address]; !listed[address] && !noted {
			s.unstored[address] = false
			s.revision.Add(1)
		}
	}
}

// toStore returns the addresses whose settings are yet to be stored.
func (s *Set) toStore() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.unstored))
}

// markStored notes that a setting was stored, and reports whether that is news to others. If
// it has changed meanwhile, it is to be stored again: the writer of the newer one may have
// been overtaken.
func (s *Set) markStored(setting *Setting) (isNews bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	isNews = s.unstored[setting.Address]
	if s.Of(setting.Address) == setting {
		delete(s.unstored, setting.Address)
		s.revision.Add(1)
	} else if s.Of(setting.Address) != nil {
		s.unstored[setting.Address] = true
	}
	return isNews
}

// IsStored reports whether the setting of an address is stored.
func (s *Set) IsStored(address string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, unstored := s.unstored[address]
	return !unstored
}
