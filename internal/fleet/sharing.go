// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"fmt"
	"strconv"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/news"
)

// The status of a target in the news, beside those of package health: it failed twice in a
// row.
const (
	statusFails   = "fails"
	statusDown    = "down"
	statusUp      = "up"
	statusUnknown = "unknown"
)

const (
	// A member that disagrees with the probers of as many targets as leastDisagreement, and
	// as large a share as disagreement, probes all itself.
	leastDisagreement = 3
	disagreement      = 0.02
)

// sharing is which targets this member probes less often. Fleet.mu guards it.
type sharing struct {
	ready   time.Time                 // from when on it may probe any less often
	alone   string                    // why it probes all at their intervals
	probes  map[uint64]bool           // targets of which it is a prober
	factors map[*health.Target]Target // those that are probed less often
}

func newSharing() sharing { return sharing{factors: make(map[*health.Target]Target)} }

// isProber reports whether this member is one of the probers of a target.
func (s *sharing) isProber(id uint64) bool { return s.alone == "" && s.probes[id] }

// restore returns the targets that are probed less often, which are no more to be.
func (s *sharing) restore() (targets []Target) {
	for _, t := range s.factors {
		targets = append(targets, t)
	}
	clear(s.factors)
	return targets
}

// thinned is a target with how much less often it is to be probed.
type thinned struct {
	Target
	factor int
}

// candidate is a member that may be a prober.
type candidate struct {
	*member
	id uint64
}

// mix distributes the bits of a number, by the finalizer of splitmix64.
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// arrange decides how often each target is probed here, and returns those for which that
// changes. The probers of a target are the live members that have it with the highest
// weights of rendezvous hashing (Thaler and Ravishankar, 1998).
func (s *sharing) arrange(f *Fleet, probers int, targets []Target, now time.Time) []thinned {
	live := []candidate{{&f.roster.own, parseID(f.id)}}
	for _, m := range f.roster.live(now) {
		live = append(live, candidate{m, parseID(m.ID)})
	}
	factors := make(map[*health.Target]int, len(targets))
	s.probes = make(map[uint64]bool)
	compared, disagrees := 0, 0
	best := make([]candidate, 0, probers+1)
	for _, t := range targets {
		id := targetID(t.Upstream, t.Check)
		var n int
		best, n = choose(live, id, probers, best)
		factor, isProber := 1, false
		status := t.Status()
		agree, differ := 0, 0
		for _, c := range best {
			if c.member == &f.roster.own {
				isProber = true
				continue
			}
			switch said := c.says(id, now, f.roster.period()); {
			case said == "":
				differ++ // it is not known
			case said == status.String():
				agree++
			case status != health.Unknown:
				differ++
			}
		}
		if n > len(best) {
			compared++
			if differ > 0 && agree == 0 && !isProber && status != health.Unknown {
				disagrees++
			}
		}
		if isProber {
			s.probes[id] = true
		} else if differ == 0 && n > probers {
			factor = (n + probers - 1) / probers
		}
		if known, ok := factors[t.Target]; !ok || factor < known {
			factors[t.Target] = factor
		}
	}
	s.alone = s.whyAlone(f, now)
	if s.alone == "" && disagrees >= max(leastDisagreement, int(disagreement*float64(compared))) {
		s.alone = fmt.Sprintf("it disagrees with those that probe %d of %d upstreams", disagrees, compared)
	}
	return s.change(factors, targets)
}

// change returns the targets whose factor is another now.
func (s *sharing) change(factors map[*health.Target]int, targets []Target) (changed []thinned) {
	for t, before := range s.factors {
		if _, still := factors[t]; !still {
			delete(s.factors, t)
			changed = append(changed, thinned{before, 1})
		}
	}
	for _, t := range targets {
		factor := factors[t.Target]
		if s.alone != "" {
			factor = 1
		}
		if factor > 1 {
			s.factors[t.Target] = t
		} else if _, was := s.factors[t.Target]; !was {
			continue
		} else {
			delete(s.factors, t.Target)
		}
		changed = append(changed, thinned{t, factor})
	}
	return changed
}

// whyAlone returns why this member does not rely on others, empty if it does.
func (s *sharing) whyAlone(f *Fleet, now time.Time) string {
	switch {
	case f.problem != "":
		return "the storage fails: " + f.problem
	case !f.roster.joined || f.roster.missing:
		return "the others do not know it yet"
	case now.Before(s.ready):
		return "its config is new"
	default:
		return ""
	}
}

// choose returns the probers of a target among the members that have it, and how many have
// it. It uses the memory of best.
func choose(live []candidate, target uint64, probers int, best []candidate) ([]candidate, int) {
	best, n := best[:0], 0
	seed := mix(target)
	for _, c := range live {
		if !c.hasTarget(target) {
			continue
		}
		n++
		weight := mix(c.id ^ seed)
		i := len(best)
		for i > 0 && mix(best[i-1].id^seed) < weight {
			i--
		}
		if i >= probers {
			continue
		}
		if len(best) < probers {
			best = append(best, candidate{})
		}
		copy(best[i+1:], best[i:])
		best[i] = c
	}
	return best, n
}

// says returns the status that a member has for a target, empty if that is not known. What
// it told by the news is newer than what it stored, for as long as that may be the one before.
func (m *member) says(id uint64, now time.Time, period time.Duration) string {
	if f, ok := m.flips[id]; ok && now.Sub(f.at) < 2*period {
		return f.status
	}
	switch status, listed := m.status[id]; {
	case listed:
		return status
	case m.More > 0:
		return ""
	default:
		return statusUp
	}
}

// doubt notes what a prober says of a target.
func (r *roster) doubt(e news.Entry, now time.Time) {
	m := r.others[e.From]
	if m == nil || e.Status != statusDown && e.Status != statusUp {
		return
	}
	if m.flips == nil {
		m.flips = make(map[uint64]flip)
	}
	for id, f := range m.flips {
		if now.Sub(f.at) >= 2*r.period() {
			delete(m.flips, id)
		}
	}
	m.flips[parseID(e.Key)] = flip{e.Status, now}
}

// byID returns targets by their IDs. Several can have one.
func byID(targets []Target) map[uint64][]Target {
	index := make(map[uint64][]Target, len(targets))
	for _, t := range targets {
		id := targetID(t.Upstream, t.Check)
		index[id] = append(index[id], t)
	}
	return index
}

// parseID returns the number of an ID of a member or a target, and formatID its text.
func parseID(text string) uint64 {
	id, _ := strconv.ParseUint(text, 16, 64)
	return id
}

func formatID(id uint64) string { return fmt.Sprintf("%016x", id) }
