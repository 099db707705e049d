// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"context"
	"maps"
	"slices"
	"time"

	"go.uber.org/zap"
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

// carried is a weight that was taken over for a pool of another name.
type carried struct {
	address, from, to string
	weight            weightSet
}

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
	if !a.keeper.isLoaded() {
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
	for _, wanted := range []<-chan struct{}{a.begun, a.keeper.loaded} {
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
		a.keeper.nudge()
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
	settings := a.operations.settings()
	lines := 0
	for _, address := range slices.Sorted(maps.Keys(settings)) {
		from, weight := settings[address].lostWeight(func(pool string) bool {
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
		known := settings[address].Weights[to]
		switch {
		case to != "" && !known.Changed.Before(weight.Changed):
			// it was carried before, or has changed since
		case to != "" && (weight.Weight != nil || known.Weight != nil):
			a.carried = append(a.carried, carried{address, from, to, weight})
			a.operations.carry(address, to, weight)
		case to == "" && weight.Weight != nil && a.has(address):
			if lines++; lines <= maxBeginLines {
				a.keeper.logger.Warn("a weight that was set at run time applies no more: it was set for a pool that is gone, and which pool takes its place is not clear",
					zap.String("upstream", address), zap.Int("weight", *weight.Weight), zap.String("pool", from),
					zap.Strings("pools", aFew(slices.Sorted(maps.Keys(having(policies, address))))))
			}
		}
	}
	if lines > maxBeginLines {
		a.keeper.logger.Warn("further weights that were set at run time apply no more", zap.Int("upstreams", lines-maxBeginLines))
	}
}

// lostWeight returns the newest weight of pools that are gone, and its pool.
func (s *setting) lostWeight(isGone func(pool string) bool) (from string, newest weightSet) {
	for _, pool := range slices.Sorted(maps.Keys(s.Weights)) {
		if w := s.Weights[pool]; isGone(pool) && (from == "" || w.Changed.After(newest.Changed)) {
			from, newest = pool, w
		}
	}
	return from, newest
}

// takesWeight reports whether a weight that was set for another pool can be that of this
// one: not if the config gives the pool a name of its own, and not if another policy
// picks, which knows no weights but 0.
func (s *Selection) takesWeight(weight *int) bool {
	return s.Name == "" && (s.inner == nil || weight == nil || *weight == 0)
}

// carry sets a weight for a pool as of when it was set for another one. It is not stored
// before keepCarried.
func (o *operations) carry(address, pool string, w weightSet) {
	o.mu.Lock()
	o.replace(merged(o.of(address), &setting{Address: address, Weights: map[string]weightSet{pool: w}}))
	o.mu.Unlock()
	o.apply(address)
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
		a.keeper.logger.Info("a weight that was set at run time follows its upstream into another pool",
			zap.String("upstream", c.address), zap.String("pool", c.to), zap.String("previous", c.from), zap.Intp("weight", c.weight.Weight))
		a.operations.keepCarried(c, a.keeper.every == 0)
	}
	a.carried = nil
}

// keepCarried has a carried weight be stored, and moves it if nothing else needs it
// under its old name.
func (o *operations) keepCarried(c carried, move bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	s := o.of(c.address)
	if s == nil || !s.Weights[c.to].Changed.Equal(c.weight.Changed) {
		return // it has changed since
	}
	if move {
		// it is newer than what is taken back, so that it can be carried back
		taken := weightSet{Changed: c.weight.Changed.Add(1)}
		moved := weightSet{Weight: c.weight.Weight, Changed: c.weight.Changed.Add(2)}
		o.replace(merged(s, &setting{Address: c.address, Weights: map[string]weightSet{c.from: taken, c.to: moved}}))
	}
	o.unstored[c.address] = true
}

// dropCarried takes carried weights back of a config that never began.
func (a *App) dropCarried() {
	for _, c := range a.carried {
		a.operations.dropCarried(c)
	}
	a.carried = nil
}

func (o *operations) dropCarried(c carried) {
	o.mu.Lock()
	defer o.mu.Unlock()
	known := o.of(c.address)
	if known == nil || !known.Weights[c.to].Changed.Equal(c.weight.Changed) {
		return
	}
	s := *known
	s.Weights = maps.Clone(known.Weights)
	delete(s.Weights, c.to)
	o.replace(&s)
}

// logSettings logs what was set at run time and applies to this config.
func (a *App) logSettings() {
	policies := a.all()
	settings := a.operations.settings()
	lines := 0
	for _, address := range slices.Sorted(maps.Keys(settings)) {
		s := settings[address]
		pools := having(policies, address)
		applies := *s
		applies.Weights = maps.Clone(s.Weights)
		maps.DeleteFunc(applies.Weights, func(pool string, _ weightSet) bool { return pools[pool] == nil })
		if len(pools) == 0 || applies.idle() {
			continue
		}
		if lines++; lines <= maxBeginLines {
			a.keeper.logger.Info("set at run time, and applies to this config", applies.fields()...)
		}
	}
	if lines > maxBeginLines {
		a.keeper.logger.Info("more was set at run time, and applies to this config", zap.Int("upstreams", lines-maxBeginLines))
	}
}

// noteAbsent notes which addresses left and which returned, and forgets what was set for
// those that left long ago. In a fleet it stays: another instance may have the address.
func (a *App) noteAbsent(now time.Time) {
	if a.keeper.every > 0 {
		return
	}
	for address, s := range a.operations.settings() {
		absent := s.absentSince()
		switch present := a.has(address); {
		case s.idle():
		case present != absent.IsZero():
			a.operations.note(address, present)
		case !present && now.Sub(absent) >= forgetAfter:
			a.keeper.logger.Info("no pool had the upstream for a day: what was set at run time is forgotten", s.fields()...)
			a.operations.set(address, change{clear: true})
		}
	}
}
