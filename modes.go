// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-alive/caddy-alive/internal/limits"
)

// mode says what operators want of the upstream at an address.
type mode string

const (
	modeReady       = "ready"       // requests while it is alive
	modeDrain       = "drain"       // no new requests while anybody else serves
	modeMaintenance = "maintenance" // no requests and no probes
)

func (m mode) valid() bool { return m == modeReady || m == modeDrain || m == modeMaintenance }

// setting is what was set at run time for one address. Each part has the time of its
// last change, and the newer part wins wherever two meet: so those who follow each
// other through a storage come to agree, whatever order they write in.
type setting struct {
	Address string               `json:"address"`
	Mode    mode                 `json:"mode"`
	Changed time.Time            `json:"changed"` // of the mode
	Weights map[string]weightSet `json:"weights,omitempty"`

	// Left is when the last pool lost the address, and Returned when one had it again;
	// not kept in a fleet, in which another instance may have it.
	Left     time.Time `json:"left,omitzero"`
	Returned time.Time `json:"returned,omitzero"`
}

// weightSet is a weight that was set in place of that of the config.
type weightSet struct {
	Weight  *int      `json:"weight"` // nil: that of the config again
	Changed time.Time `json:"changed"`
}

// mode returns the mode, ready if none was set.
func (s *setting) mode() mode {
	if s == nil || s.Mode == "" {
		return modeReady
	}
	return s.Mode
}

// weight returns the weight in a pool, otherwise if none was set.
func (s *setting) weight(pool string, otherwise int) int {
	if s == nil || s.Weights[pool].Weight == nil {
		return otherwise
	}
	return *s.Weights[pool].Weight
}

// fields are for the log.
func (s *setting) fields() []zap.Field {
	fields := []zap.Field{zap.String("upstream", s.Address), zap.String("mode", string(s.mode()))}
	for _, pool := range slices.Sorted(maps.Keys(s.Weights)) {
		if weight := s.Weights[pool].Weight; weight != nil {
			fields = append(fields, zap.String("pool", pool), zap.Int("weight", *weight))
		}
	}
	return fields
}

// newest returns when anything was last changed.
func (s *setting) newest() time.Time {
	newest := s.Changed
	for _, w := range s.Weights {
		if w.Changed.After(newest) {
			newest = w.Changed
		}
	}
	return newest
}

// latest returns the latest of all its times.
func (s *setting) latest() time.Time {
	return slices.MaxFunc([]time.Time{s.newest(), s.Left, s.Returned}, time.Time.Compare)
}

// absentSince returns since when no pool has the address, the zero time if one has.
func (s *setting) absentSince() time.Time {
	if s.Left.After(s.Returned) {
		return s.Left
	}
	return time.Time{}
}

// idle reports whether all is as without it.
func (s *setting) idle() bool {
	for _, w := range s.Weights {
		if w.Weight != nil {
			return false
		}
	}
	return s.mode() == modeReady
}

// rank tells apart what was set at the very same time.
func (w weightSet) rank() int {
	if w.Weight == nil {
		return -1
	}
	return *w.Weight
}

// merged returns the newer parts of both; either can be nil. Of two parts that are as
// new, everybody takes the same.
func merged(a, b *setting) *setting {
	if a == nil || b == nil {
		return cmp.Or(a, b)
	}
	m := *a
	if cmp.Or(b.Changed.Compare(a.Changed), strings.Compare(string(b.Mode), string(a.Mode))) > 0 {
		m.Mode, m.Changed = b.Mode, b.Changed
	}
	m.Left, m.Returned = later(a.Left, b.Left), later(a.Returned, b.Returned)
	m.Weights = maps.Clone(a.Weights)
	for pool, w := range b.Weights {
		if m.Weights == nil {
			m.Weights = make(map[string]weightSet)
		}
		known, ok := m.Weights[pool]
		if !ok || cmp.Or(w.Changed.Compare(known.Changed), cmp.Compare(w.rank(), known.rank())) > 0 {
			m.Weights[pool] = w
		}
	}
	return &m
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// equal reports whether both say the same.
func (s *setting) equal(other *setting) bool {
	return s.Address == other.Address && s.Mode == other.Mode && s.Changed.Equal(other.Changed) &&
		s.Left.Equal(other.Left) && s.Returned.Equal(other.Returned) &&
		maps.EqualFunc(s.Weights, other.Weights, func(a, b weightSet) bool {
			return a.Changed.Equal(b.Changed) && (a.Weight == nil) == (b.Weight == nil) && (a.Weight == nil || *a.Weight == *b.Weight)
		})
}

// parseSetting reads what a storage holds, which may be anything.
func parseSetting(text []byte) (*setting, error) {
	s := new(setting)
	if err := json.Unmarshal(text, s); err != nil {
		return nil, err
	}
	if s.Address == "" {
		return nil, errors.New("it names no address")
	}
	if s.Mode != "" && !s.Mode.valid() {
		return nil, fmt.Errorf("it has the unknown mode %q", s.Mode)
	}
	for pool, w := range s.Weights {
		if w.Weight != nil && !limits.IsWeight(*w.Weight) {
			return nil, fmt.Errorf("it has the weight %d for %s", *w.Weight, pool)
		}
	}
	return s, nil
}

// operations are the settings that the configs of one scope share: one fleet, or
// this instance. They are in shared.Settings, by scope, and outlive reloads.
type operations struct {
	// current is never changed, but replaced.
	current atomic.Pointer[map[string]*setting]

	mu       sync.Mutex // guards what follows, and who replaces current
	unstored map[string]bool
	apps     map[*App]struct{} // that apply changes
}

func newOperations() *operations {
	o := &operations{unstored: make(map[string]bool), apps: make(map[*App]struct{})}
	o.current.Store(new(map[string]*setting))
	return o
}

// Destruct has nothing to do.
func (*operations) Destruct() error { return nil }

// of returns the setting of an address, nil if there is none. It never waits.
func (o *operations) of(address string) *setting {
	if o == nil {
		return nil
	}
	return (*o.current.Load())[address]
}

// settings returns all settings.
func (o *operations) settings() map[string]*setting { return *o.current.Load() }

// change is what an operator wants of an address. A part that is nil stays as it is.
type change struct {
	mode   *mode
	pool   string // of the weight
	weight **int  // a pointer to nil: as in the config again
	clear  bool   // all of it, instead
}

// set changes a setting, and returns what it is then, once all that it concerns here
// follow. It is yet to be stored then.
func (o *operations) set(address string, c change) *setting {
	o.mu.Lock()
	known := o.of(address)
	now := time.Now().UTC()
	if known != nil && !now.After(known.newest()) {
		now = known.newest().Add(1) // the clock of another instance is ahead of this one
	}
	s := &setting{Address: address}
	if c.clear && known != nil {
		s.Mode, s.Changed, s.Weights = modeReady, now, make(map[string]weightSet)
		for pool := range known.Weights {
			s.Weights[pool] = weightSet{Changed: now}
		}
	}
	if c.mode != nil {
		s.Mode, s.Changed = *c.mode, now
	}
	if c.weight != nil {
		s.Weights = map[string]weightSet{c.pool: {Weight: *c.weight, Changed: now}}
	}
	s = merged(known, s)
	o.replace(s)
	o.unstored[address] = true
	o.mu.Unlock()
	o.apply(address)
	listings.changed()
	return s
}

// note has a setting say since when the address is in no pool, or in one again.
func (o *operations) note(address string, present bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	known := o.of(address)
	if known == nil {
		return
	}
	s := *known
	now := later(time.Now().UTC(), later(s.Left, s.Returned).Add(1))
	if present {
		s.Returned = now
	} else {
		s.Left = now
	}
	o.replace(&s)
	o.unstored[address] = true
}

// learn takes over what is newer in stored settings than here, and has what is older
// there stored again. It returns those in which anything was newer.
func (o *operations) learn(stored ...*setting) (changed []*setting) {
	if len(stored) == 0 {
		return nil
	}
	o.mu.Lock()
	current := o.settings()
	for _, s := range stored {
		known := current[s.Address]
		all := merged(known, s)
		if known == nil || !all.equal(known) {
			if len(changed) == 0 {
				current = maps.Clone(current)
			}
			if current == nil {
				current = make(map[string]*setting)
			}
			current[s.Address] = all
			changed = append(changed, s)
		}
		if !all.equal(s) {
			o.unstored[s.Address] = true
		}
	}
	o.current.Store(&current)
	o.mu.Unlock()
	for _, s := range changed {
		o.apply(s.Address)
	}
	return changed
}

// replace puts a setting in place of that of the same address. o.mu must be held.
func (o *operations) replace(s *setting) {
	all := maps.Clone(*o.current.Load())
	if all == nil {
		all = make(map[string]*setting)
	}
	all[s.Address] = s
	o.current.Store(&all)
}

// forget drops the setting of an address, if it is still this one.
func (o *operations) forget(s *setting) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.of(s.Address) != s {
		return
	}
	all := maps.Clone(*o.current.Load())
	delete(all, s.Address)
	o.current.Store(&all)
	delete(o.unstored, s.Address)
}

// apply has all policies that a setting concerns follow it.
func (o *operations) apply(address string) {
	o.mu.Lock()
	apps := slices.Collect(maps.Keys(o.apps))
	o.mu.Unlock()
	for _, a := range apps {
		for _, s := range a.all() {
			s.applyMode(address)
		}
	}
}

// storeAllBut has all stored again that is not listed in the storage: it may be
// another storage than before, or it lost it.
func (o *operations) storeAllBut(listed map[string]bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for address := range o.settings() {
		if !listed[address] {
			o.unstored[address] = true
		}
	}
}

// toStore returns the addresses whose settings are yet to be stored.
func (o *operations) toStore() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Sorted(maps.Keys(o.unstored))
}

// stored notes that a setting was. If it has changed meanwhile, it is to be stored
// again: whoever stored the newer one may have been overtaken.
func (o *operations) stored(s *setting) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.of(s.Address) == s {
		delete(o.unstored, s.Address)
		listings.changed() // it is persisted now
	} else if o.of(s.Address) != nil {
		o.unstored[s.Address] = true
	}
}

// persisted reports whether the setting of an address is stored.
func (o *operations) persisted(address string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return !o.unstored[address]
}

// join has an app apply changes until it leaves.
func (o *operations) join(a *App) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.apps[a] = struct{}{}
}

func (o *operations) leave(a *App) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.apps, a)
}

// forget takes back what was set for an address that a dynamic source does not bring
// any more. In a fleet it stays: another instance may have the address. An app that is
// nil has nothing to forget.
func (a *App) forget(address string) {
	if a == nil || a.keeper.every > 0 || a.operations.of(address) == nil {
		return
	}
	if a.has(address) {
		return
	}
	a.operations.set(address, change{clear: true})
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
		set := o.of(m.address)
		for _, w := range m.watches {
			if yet || !w.Target.Running() {
				w.Target.Pause(set.mode() == modeMaintenance)
			}
		}
		if o.of(m.address) == set {
			return
		}
	}
}
