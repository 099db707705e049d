// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"cmp"
	"hash/maphash"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/pool"
)

const (
	// maxAnswers is how many different answers of dynamic sources are cached, and
	// maxAnswered how many addresses they may have in all if they are several.
	maxAnswers  = 256
	maxAnswered = 1 << 16
)

// answer is one answer of a dynamic source: the same addresses in the same order.
type answer struct {
	*pool.Pool
	hash  uint64
	dials []string
	set   *addressSet
	last  atomic.Int64 // when a request last brought it, as elapsed
}

// isOf reports whether these upstreams are those of the answer.
func (a *answer) isOf(upstreams reverseproxy.UpstreamPool) bool {
	return slices.EqualFunc(a.dials, upstreams, func(dial string, u *reverseproxy.Upstream) bool { return dial == u.Dial })
}

// answers are those that are cached, by hash.
type answers struct {
	seed maphash.Seed
	// kept is never changed, but replaced. dynamic.mu is held while it is.
	kept atomic.Pointer[map[uint64]*answer]
	// newest is the answer that a request brought last, nil before the first request.
	newest atomic.Pointer[answer]
}

func (a *answers) init() {
	a.seed = maphash.MakeSeed()
	a.replace(nil)
}

// hash returns that of the addresses in their order.
func (a *answers) hash(upstreams reverseproxy.UpstreamPool) uint64 {
	var h maphash.Hash
	h.SetSeed(a.seed)
	for _, u := range upstreams {
		_, _ = h.WriteString(u.Dial)
		_ = h.WriteByte(0)
	}
	return h.Sum64()
}

// find returns the answer of these upstreams, nil if it is new. It never waits.
func (a *answers) find(upstreams reverseproxy.UpstreamPool, hash uint64) *answer {
	known := (*a.kept.Load())[hash]
	if known == nil || !known.isOf(upstreams) {
		return nil
	}
	return known
}

// all returns the answers by hash. The map must not be changed.
func (a *answers) all() map[uint64]*answer { return *a.kept.Load() }

func (a *answers) replace(kept map[uint64]*answer) { a.kept.Store(&kept) }

// cache caches an answer and drops the least recently used ones for which no request
// waits. It returns those that are dropped.
func (a *answers) cache(made *answer, awaited map[*pool.Pool]bool) (dropped []*answer) {
	kept := maps.Clone(a.all())
	if kept == nil {
		kept = make(map[uint64]*answer)
	}
	size := len(made.dials)
	for _, other := range kept {
		size += len(other.dials)
	}
	if len(kept) >= maxAnswers || size > maxAnswered {
		// some more than needed, so as not to do this for every new one
		others := a.byLastUse()
		clear(kept)
		size = len(made.dials)
		for _, other := range others {
			size += len(other.dials)
			if awaited[other.Pool] || len(kept) < maxAnswers*3/4 && size <= maxAnswered {
				kept[other.hash] = other
			} else {
				dropped = append(dropped, other)
			}
		}
	}
	kept[made.hash] = made
	a.replace(kept)
	return dropped
}

// retain drops the answers that are not wanted.
func (a *answers) retain(wanted func(*answer) bool) {
	kept := maps.Clone(a.all())
	maps.DeleteFunc(kept, func(_ uint64, other *answer) bool { return !wanted(other) })
	a.replace(kept)
}

// byLastUse returns the answers, the last one that a request brought first.
func (a *answers) byLastUse() []*answer {
	last := make(map[*answer]int64) // requests may bring one meanwhile
	for _, one := range a.all() {
		last[one] = one.last.Load()
	}
	sorted := slices.Collect(maps.Keys(last))
	slices.SortFunc(sorted, func(a, b *answer) int { return cmp.Compare(last[b], last[a]) })
	return sorted
}

// brought notes that a request brings an answer.
func (a *answers) brought(one *answer, now time.Time) {
	at := elapsed(now)
	one.last.Store(int64(at))
	last := time.Duration(one.set.last.Swap(int64(at)))
	before := a.newest.Load()
	if before == one {
		return
	}
	a.newest.Store(one)
	if before != nil && before.set != one.set && at > last { // else it comes first, in another order, or is new
		one.set.broughtAgain(last, at)
	}
}
