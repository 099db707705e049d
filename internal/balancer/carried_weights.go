// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"context"
	"maps"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/view"
)

// What was set at run time, when a config begins: weights follow their upstreams into
// pools of other names, what applies is logged, and what is of no use is forgotten.

const (
	// presenceInterval is how often addresses are looked for that left or returned.
	presenceInterval = time.Minute
	// forgetAfter is how long what was set is kept for an address that no pool has.
	forgetAfter = 24 * time.Hour
	// maxLines bounds how many upstreams a config that begins logs.
	maxLines = 20
)

// carriedWeights are the weights of a config that follow their upstreams.
type carriedWeights struct {
	before    []string           // the names of the pools of the config before, nil if there is none
	addresses map[string]bool    // of the upstreams that it had
	carried   []settings.Carried // until the config has begun
	done      bool               // all were looked at
}

// startBeside has the registry start beside the one before, nil if there is none. Where the
// storage has told what was set, weights follow from the beginning.
func (r *Registry) startBeside(other *Registry) {
	if other != nil {
		r.beside.Store(true)
		r.carried.before, r.carried.addresses = []string{}, make(map[string]bool)
		for _, b := range other.All() {
			r.carried.before = append(r.carried.before, b.Name())
			for _, m := range b.allMembers() {
				r.carried.addresses[m.Address] = true
			}
		}
	}
	if r.Store.IsLoaded() {
		r.carried.carry(r)
	}
}

// keepSettings looks after what was set at run time, from when the config has begun and
// the storage has told what it holds.
func (r *Registry) keepSettings(ctx context.Context) {
	for _, wanted := range []<-chan struct{}{r.configStarted.done, r.Store.Loaded()} {
		select {
		case <-ctx.Done():
			return
		case <-wanted:
		}
	}
	if !r.carried.done {
		r.carried.carry(r)
	}
	r.carried.keep(r)
	r.logSettings()
	ticker := time.NewTicker(presenceInterval)
	defer ticker.Stop()
	for {
		r.markPresence(time.Now())
		r.Store.Wake()
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// carry has weights that were set at run time follow their upstreams: the name of a pool
// is the list of its upstreams, unless the config names it, so a weight would be lost
// when the list changes. A weight for a pool that the config before did not have either
// counts where no pool of that config had the upstream: it returns now.
func (o *carriedWeights) carry(r *Registry) {
	o.done = true
	balancers := r.All()
	current := make(map[string]bool)
	for _, b := range balancers {
		current[b.Name()] = true
	}
	all := r.Settings.All()
	lines := 0
	for _, address := range slices.Sorted(maps.Keys(all)) {
		from, weight := all[address].OrphanedWeight(func(pool string) bool {
			return !current[pool] && (o.before == nil || slices.Contains(o.before, pool) || !o.addresses[address])
		})
		if from == "" {
			continue
		}
		pools := having(balancers, address)
		has := len(pools) > 0
		maps.DeleteFunc(pools, func(pool string, _ *Balancer) bool { return slices.Contains(o.before, pool) })
		var to string
		for pool, b := range pools {
			if len(pools) == 1 && b.takesWeight(weight.Weight) {
				to = pool
			}
		}
		known := all[address].Weights[to]
		switch {
		case to != "" && !known.Changed.Before(weight.Changed):
			// it was carried before, or has changed since
		case to != "" && (weight.Weight != nil || known.Weight != nil):
			c := settings.Carried{Address: address, From: from, To: to, Weight: weight}
			o.carried = append(o.carried, c)
			r.Settings.Carry(c)
		case to == "" && weight.Weight != nil && has:
			if lines++; lines <= maxLines {
				r.Logger.Warn("a weight set at run time no longer applies: its pool no longer exists, and it is not clear which pool replaces it",
					zap.String("upstream", address), zap.Int("weight", *weight.Weight), zap.String("pool", from),
					zap.Strings("pools", view.Few(slices.Sorted(maps.Keys(having(balancers, address))))))
			}
		}
	}
	if lines > maxLines {
		r.Logger.Warn("further weights set at run time no longer apply", zap.Int("upstreams", lines-maxLines))
	}
}

// keep stores the weights that were carried, now that the config has begun. In a fleet
// the old ones stay: others may still have the config before.
func (o *carriedWeights) keep(r *Registry) {
	if !r.hasConfigStarted() {
		return
	}
	for _, c := range o.carried {
		r.Logger.Info("a weight that was set at run time follows its upstream into another pool",
			zap.String("upstream", c.Address), zap.String("pool", c.To), zap.String("previous", c.From), zap.Intp("weight", c.Weight.Weight))
		r.Settings.KeepCarried(c, !r.Store.IsFleet())
	}
	o.carried = nil
}

// drop takes carried weights back of a config that never began.
func (o *carriedWeights) drop(set *settings.Set) {
	for _, c := range o.carried {
		set.DropCarried(c)
	}
	o.carried = nil
}

// logSettings logs what was set at run time and applies to this config.
func (r *Registry) logSettings() {
	balancers := r.All()
	all := r.Settings.All()
	lines := 0
	for _, address := range slices.Sorted(maps.Keys(all)) {
		pools := having(balancers, address)
		applies := all[address].Only(func(pool string) bool { return pools[pool] != nil })
		if len(pools) == 0 || applies.IsDefault() {
			continue
		}
		if lines++; lines <= maxLines {
			r.Logger.Info("set at run time, and applies to this config", applies.Fields()...)
		}
	}
	if lines > maxLines {
		r.Logger.Info("more was set at run time, and applies to this config", zap.Int("upstreams", lines-maxLines))
	}
}

// markPresence notes which addresses left and which returned, and forgets what was set
// for those that left long ago. In a fleet it stays: another instance may have the
// address.
func (r *Registry) markPresence(now time.Time) {
	if r.Store.IsFleet() {
		return
	}
	for address, s := range r.Settings.All() {
		absent := s.AbsentSince()
		switch present := len(r.Having(address)) > 0; {
		case s.IsDefault():
		case present != absent.IsZero():
			r.Settings.MarkPresence(address, present)
		case !present && now.Sub(absent) >= forgetAfter:
			r.Logger.Info("no pool had the upstream for a day: what was set at run time is forgotten", s.Fields()...)
			r.Settings.Change(address, settings.Change{Clear: true})
		}
	}
}

// forgetSettings takes back what was set for an address that a dynamic source does not bring any
// more. In a fleet it stays: another instance may have the address.
func (r *Registry) forgetSettings(address string) {
	if r.Store.IsFleet() || r.Settings.Of(address) == nil || len(r.Having(address)) > 0 {
		return
	}
	r.Settings.Change(address, settings.Change{Clear: true})
}
