// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/monitor"
	"github.com/caddy-alive/caddy-alive/internal/rotation"
	"github.com/caddy-alive/caddy-alive/internal/settings"
)

const (
	// rampSteps is how often the weight of an upstream grows during its slow
	// start.
	rampSteps = 20
	// rampedLen bounds the cycle of an order while an upstream ramps, unless that would
	// distort the least weight. Many distinct weights make an order costly, and this one
	// is made again at every step.
	rampedLen = 1 << 15
	// defaultFloor is where a slow start begins, as a share of the weight.
	defaultFloor = 0.1
)

// member is what is configured and known of one upstream of a pool.
type member struct {
	address string             // as operators name it, empty if it stands for several
	watches []*monitor.Monitor // none: not checked, counts as alive
	weight  int                // 0: no traffic at all
	backup  bool
	// picked is how often it was picked, but for the tickets of snapshots that are
	// not counted yet: below 0 where one was drawn and not followed
	picked atomic.Int64
}

// status is down if any check is, up if all are.
func (m *member) status() health.Status {
	status := health.Up
	for _, w := range m.watches {
		switch w.Target.Status() {
		case health.Down:
			return health.Down
		case health.Unknown:
			status = health.Unknown
		case health.Up:
		}
	}
	return status
}

// probeUnknown has those without a verdict probed at once, instead of when it is their
// turn among all first probes: a request waits for them.
func (s *snapshot) probeUnknown() {
	for _, m := range s.members {
		for _, w := range m.watches {
			if w.Target.Status() == health.Unknown {
				w.Target.ProbeNow()
			}
		}
	}
}

// draining reports whether any check was told that no new requests are wanted.
func (m *member) draining() bool {
	return slices.ContainsFunc(m.watches, func(w *monitor.Monitor) bool { return w.Target.Draining() })
}

// upFor is how long all checks have been up; as good as for ever without any, and for
// checks that passed from the cold start of the pool on: these have no slow start.
func (m *member) upFor(now time.Time) time.Duration {
	up := time.Duration(math.MaxInt64)
	for _, w := range m.watches {
		if !w.Target.Original() {
			up = min(up, now.Sub(w.Target.Since()))
		}
	}
	return up
}

// rules are what is configured about who gets requests.
type rules struct {
	failOpen  failOpen
	slowStart time.Duration // window of the slow start, 0 for none
	floor     float64       // where it begins, as a share of the weight

	operations *settings.Set // what is set at run time; nil for nothing
	pool       string        // whose weights of these count
}

// failOpen says when health is ignored.
type failOpen struct {
	never   bool
	percent float64 // also while less than so many of the primaries serve
}

// tooFew reports whether so few of those with a verdict serve that health is
// ignored.
func (f failOpen) tooFew(serving, decided int) bool {
	return float64(100*serving) < f.percent*float64(decided)
}

// tier is some of the members of a pool, in the order in which they get
// requests.
type tier struct {
	order   rotation.Order
	weights []int // by position, 0 for those who are not in it
	// anyHealth: they get requests whatever their health.
	anyHealth bool
	// draining: they get requests only while no other upstream serves.
	draining bool
	// scale is what a weight of 1 is in it, 1 if it is 0
	scale int
	// tickets are drawn for the order: those of the snapshot if it is its best, and
	// counted is true, else those of the tier
	tickets *atomic.Uint64
	counted bool
}

func (t *tier) empty() bool { return t.order.Len() == 0 }

// newTier makes a tier of the members of a pool by their weights in it.
func newTier(members []*member, weight func(i int, m *member) int) *tier {
	t := &tier{weights: make([]int, len(members)), tickets: new(atomic.Uint64)}
	t.tickets.Store(uint64(rand.Uint32())) // not at the first, each time anew
	for i, m := range members {
		t.weights[i] = weight(i, m)
	}
	t.order = rotation.New(t.weights)
	return t
}

// snapshot is who may get requests, frozen until a verdict changes. Its orders
// have positions in the pool.
type snapshot struct {
	// best is the order of the first tier, empty if that ignores health.
	best rotation.Order
	// quick: a ticket of best may decide, unless the one drawn cannot take the request.
	// direct: it does, since Caddy's own health makes no difference to the mood.
	quick  bool
	direct atomic.Bool
	// tiers are those who serve, the best first, and then those who are draining and
	// would. None is empty.
	tiers []*tier
	// primaries and backups are those of the tiers who are, nil if there are none;
	// all are the primaries, whatever their health, and decided is how many of
	// them have a verdict. What fail_open says goes by these.
	primaries, backups *tier
	all                func() *tier
	decided            int
	// undecided: a primary has no verdict yet.
	undecided bool
	// unknown are those without a verdict, for when nobody serves.
	unknown func() *tier
	// resort are those to ask in the end, whatever their health.
	resort func() *tier
	// mood is what there is to be said about it all, by the checks alone.
	mood mood
	// said is the mood of the pool that was last told, by Caddy's own health, too.
	said *atomic.Int32
	// next is when a slow start goes on, 0 if there is none.
	next time.Duration
	// superseded is closed when a newer snapshot replaced this one.
	superseded chan struct{}
	// members are those it was made for, and ready are the weights of those that are
	// neither draining nor in maintenance, whatever their health.
	members []*member
	ready   []int
	// tickets are drawn for the order of best, from first on: so they also tell who
	// was picked how often. They change all the time, and must not share a cache line
	// with what does not.
	first   uint64
	_       [64]byte
	tickets atomic.Uint64
	_       [64]byte
}

// newSnapshot decides who may get requests, and in which order.
func newSnapshot(members []*member, r rules, now time.Time) *snapshot {
	s := &snapshot{members: members, superseded: make(chan struct{})}
	statuses := make([]health.Status, len(members))
	weights := make([]int, len(members))
	ready := make([]bool, len(members))       // they have a weight, and are neither draining nor in maintenance
	var primaries, serving, down, backups int // of those who are ready
	var draining [2]int                       // primaries and backups that would serve
	for i, m := range members {
		statuses[i] = m.status()
		up := statuses[i] == health.Up
		set := r.operations.Of(m.address)
		weights[i] = set.WeightIn(r.pool, m.weight)
		ready[i] = weights[i] > 0 && set.ModeNow() == settings.Ready && (!up || !m.draining())
		switch {
		case weights[i] == 0:
		case set.ModeNow() == settings.Maintenance, set.ModeNow() == settings.Drain && !up:
			weights[i] = 0
		case !ready[i]:
			draining[index(m.backup)]++
		case m.backup && up:
			backups++
		case m.backup:
		default:
			primaries++
			switch statuses[i] {
			case health.Up:
				serving++
			case health.Down:
				down++
			case health.Unknown:
				s.undecided = true
			}
		}
	}
	// weightIf is the weight, or 0 if one does not take part
	weightIf := func(i int, takesPart bool) int {
		if takesPart {
			return weights[i]
		}
		return 0
	}
	everybody := func(backup bool) *tier {
		t := newTier(members, func(i int, m *member) int {
			if m.backup == backup {
				return s.ready[i]
			}
			return 0
		})
		t.anyHealth = true
		return t
	}
	alive := func(backup bool) *tier {
		return s.rampedTier(members, func(i int, m *member) int {
			return weightIf(i, m.backup == backup && ready[i] && statuses[i] == health.Up)
		}, r, now)
	}

	s.ready = make([]int, len(members))
	for i := range members {
		s.ready[i] = weightIf(i, ready[i])
	}
	s.decided = serving + down
	s.all = sync.OnceValue(func() *tier { return everybody(false) })
	if backups == 0 && r.failOpen.tooFew(serving, s.decided) {
		s.mood = failedOpen
		s.tiers = append(s.tiers, s.all())
	}
	if serving > 0 {
		s.primaries = alive(false)
		s.tiers = append(s.tiers, s.primaries)
	}
	if backups > 0 {
		s.backups = alive(true)
		s.tiers = append(s.tiers, s.backups)
	}
	for backup, n := range draining {
		if n > 0 { // better than an error
			t := newTier(members, func(i int, m *member) int {
				return weightIf(i, !ready[i] && index(m.backup) == backup)
			})
			t.draining = true
			s.tiers = append(s.tiers, t)
		}
	}
	if len(s.tiers) > 0 && !s.tiers[0].anyHealth {
		s.best = s.tiers[0].order
		s.tiers[0].tickets, s.tiers[0].counted = &s.tickets, true
	}

	// what follows is hardly ever needed, so it is made when it is asked for
	s.unknown = sync.OnceValue(func() *tier {
		backup := !s.undecided // only if no primary is left to hope for
		return newTier(members, func(i int, m *member) int {
			return weightIf(i, ready[i] && m.backup == backup && statuses[i] == health.Unknown)
		})
	})
	s.resort = sync.OnceValue(func() *tier {
		if r.failOpen.never {
			return new(tier)
		}
		return everybody(primaries == 0)
	})
	if len(s.tiers) == 0 && len(members) > 0 && s.unknown().empty() {
		s.mood = lastResort
		if s.resort().empty() {
			s.mood = unavailable
		}
	}
	return s
}

// index is 0 for a primary, and 1 for a backup.
func index(backup bool) int {
	if backup {
		return 1
	}
	return 0
}

// rampedTier is some members, with those that came up a short while ago at a part
// of their weight. They ramp only while one of them is past it: when a whole pool
// starts, none could take the load off the new ones.
func (s *snapshot) rampedTier(members []*member, weight func(i int, m *member) int, r rules, now time.Time) *tier {
	all, past := 0, 0
	longest, shortest := time.Duration(0), r.slowStart // of those that are not past it
	if r.slowStart > 0 {
		for i, m := range members {
			if weight(i, m) == 0 {
				continue
			}
			all++
			if up := m.upFor(now); up >= r.slowStart {
				past++
			} else {
				longest, shortest = max(longest, up), min(shortest, up)
			}
		}
	}
	if past == 0 && longest > shortest {
		s.wake(r.slowStart - longest) // when the first is past it, the others ramp
	}
	if past == all || past == 0 {
		return newTier(members, weight)
	}

	step := max(r.slowStart/rampSteps, 1)
	floor := max(1, int(math.Ceil(r.floor*rampSteps-1e-9)))
	t := &tier{weights: make([]int, len(members)), scale: rampSteps, tickets: new(atomic.Uint64)}
	sum, least := int64(0), int64(math.MaxInt64)
	for i, m := range members {
		if weight(i, m) == 0 {
			continue
		}
		steps := rampSteps
		if up := m.upFor(now); up < r.slowStart {
			steps = min(max(floor, int(up/step)), rampSteps)
			s.wake(step) // one for all, however many there are
		}
		t.weights[i] = weight(i, m) * steps
		sum += int64(t.weights[i])
		least = min(least, int64(t.weights[i]))
	}
	// four turns or more for the least weight, so that rounding takes or gives no more
	// than an eighth of it
	length := min(max(rampedLen, 4*(sum/least)), rotation.MaxLen)
	t.order = rotation.NewBounded(t.weights, int(length))
	return t
}

// wake has the slow start go on after some time, or sooner.
func (s *snapshot) wake(after time.Duration) {
	if s.next == 0 || after < s.next {
		s.next = after
	}
}
