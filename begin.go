// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"context"
	"maps"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-alive/caddy-alive/internal/settings"
)

// What was set at run time, when a config begins: weights follow their upstreams into
// pools of other names, what applies is logged, and what is of no use is forgotten.

const (
	// attendInterval is how often addresses are looked for that left or returned.
	attendInterval = time.Minute
	// forgetAfter is how long what was set is kept for an address that no pool has.
	forgetAfter = 24 * time.Hour
	// maxBeginLines bounds how many upstreams a config that begins logs.
	maxBeginLines = 20
)

// isStarting reports whether the app has started beside another one, and its config not
// yet as a whole: it may still fail to.
func (a *App) isStarting() bool { return a != nil && a.starting.Load() }

// meet has the app start beside the one before, nil if there is none. It reports whether
// the storage has told what was set, so that weights follow from the beginning.
func (a *App) meet(other *App) bool {
	if other != nil {
		a.starting.Store(true)
		a.before, a.had = []string{}, make(map[string]bool)
		for _, s := range other.all() {
			a.before = append(a.before, s.pool)
			for _, m := range s.allMembers() {
				a.had[m.address] = true
			}
		}
	}
	if !a.keeper.IsLoaded() {
		return false
	}
	a.carryWeights()
	return true
}

// hasBegun is called when the config has started as a whole.
func (a *App) hasBegun() {
	a.begin.Do(func() {
		a.starting.Store(false)
		for _, s := range a.all() {
			s.applyModes()
		}
		close(a.begun)
	})
}

// attend looks after what was set at run time, from when the config has begun and the
// storage has told what it holds.
func (a *App) attend(ctx context.Context, met bool) {
	for _, wanted := range []<-chan struct{}{a.begun, a.keeper.Loaded()} {
		select {
		case <-ctx.Done():
			return
		case <-wanted:
		}
	}
	if !met {
		a.carryWeights()
	}
	a.keepCarried()
	a.logSettings()
	ticker := time.NewTicker(attendInterval)
	defer ticker.Stop()
	for {
		a.noteAbsent(time.Now())
		a.keeper.Wake()
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// having returns the policies that have an address, one for each name of a pool.
func having(policies []*Selection, address string) map[string]*Selection {
	pools := make(map[string]*Selection)
	for _, s := range policies {
		if s.byAddress(address) != nil {
			pools[s.pool] = s
		}
	}
	return pools
}

// carryWeights has weights that were set at run time follow their upstreams: the name of
// a pool is the list of its upstreams, unless the config names it, so a weight would be
// lost when the list changes. What was set for pools that the config before did not have
// either is of interest where that had the upstream in no pool: it returns now.
func (a *App) carryWeights() {
	policies := a.all()
	current := make(map[string]bool)
	for _, s := range policies {
		current[s.pool] = true
	}
	all := a.operations.All()
	lines := 0
	for _, address := range slices.Sorted(maps.Keys(all)) {
		from, weight := all[address].OrphanedWeight(func(pool string) bool {
			return !current[pool] && (a.before == nil || slices.Contains(a.before, pool) || !a.had[address])
		})
		if from == "" {
			continue
		}
		pools := having(policies, address)
		maps.DeleteFunc(pools, func(pool string, _ *Selection) bool { return slices.Contains(a.before, pool) })
		var to string
		for pool, s := range pools {
			if len(pools) == 1 && s.takesWeight(weight.Weight) {
				to = pool
			}
		}
		known := all[address].Weights[to]
		switch {
		case to != "" && !known.Changed.Before(weight.Changed):
			// it was carried before, or has changed since
		case to != "" && (weight.Weight != nil || known.Weight != nil):
			c := settings.Carried{Address: address, From: from, To: to, Weight: weight}
			a.carried = append(a.carried, c)
			a.operations.Carry(c)
		case to == "" && weight.Weight != nil && a.has(address):
			if lines++; lines <= maxBeginLines {
				a.logger.Warn("a weight that was set at run time applies no more: it was set for a pool that is gone, and which pool takes its place is not clear",
					zap.String("upstream", address), zap.Int("weight", *weight.Weight), zap.String("pool", from),
					zap.Strings("pools", aFew(slices.Sorted(maps.Keys(having(policies, address))))))
			}
		}
	}
	if lines > maxBeginLines {
		a.logger.Warn("further weights that were set at run time apply no more", zap.Int("upstreams", lines-maxBeginLines))
	}
}

// takesWeight reports whether a weight that was set for another pool can be that of this
// one: not if the config gives the pool a name of its own, and not if another policy
// picks, which knows no weights but 0.
func (s *Selection) takesWeight(weight *int) bool {
	return s.Name == "" && (s.inner == nil || weight == nil || *weight == 0)
}

// keepCarried stores the weights that were carried, now that the config has begun. In a
// fleet the old ones stay: others may still have the config before.
func (a *App) keepCarried() {
	select {
	case <-a.begun:
	default:
		return
	}
	for _, c := range a.carried {
		a.logger.Info("a weight that was set at run time follows its upstream into another pool",
			zap.String("upstream", c.Address), zap.String("pool", c.To), zap.String("previous", c.From), zap.Intp("weight", c.Weight.Weight))
		a.operations.KeepCarried(c, !a.keeper.IsFleet())
	}
	a.carried = nil
}

// dropCarried takes carried weights back of a config that never began.
func (a *App) dropCarried() {
	for _, c := range a.carried {
		a.operations.DropCarried(c)
	}
	a.carried = nil
}

// logSettings logs what was set at run time and applies to this config.
func (a *App) logSettings() {
	policies := a.all()
	all := a.operations.All()
	lines := 0
	for _, address := range slices.Sorted(maps.Keys(all)) {
		s := all[address]
		pools := having(policies, address)
		applies := s.Only(func(pool string) bool { return pools[pool] != nil })
		if len(pools) == 0 || applies.IsDefault() {
			continue
		}
		if lines++; lines <= maxBeginLines {
			a.logger.Info("set at run time, and applies to this config", applies.Fields()...)
		}
	}
	if lines > maxBeginLines {
		a.logger.Info("more was set at run time, and applies to this config", zap.Int("upstreams", lines-maxBeginLines))
	}
}

// noteAbsent notes which addresses left and which returned, and forgets what was set for
// those that left long ago. In a fleet it stays: another instance may have the address.
func (a *App) noteAbsent(now time.Time) {
	if a.keeper.IsFleet() {
		return
	}
	for address, s := range a.operations.All() {
		absent := s.AbsentSince()
		switch present := a.has(address); {
		case s.IsDefault():
		case present != absent.IsZero():
			a.operations.MarkPresence(address, present)
		case !present && now.Sub(absent) >= forgetAfter:
			a.logger.Info("no pool had the upstream for a day: what was set at run time is forgotten", s.Fields()...)
			a.operations.Change(address, settings.Change{Clear: true})
		}
	}
}
