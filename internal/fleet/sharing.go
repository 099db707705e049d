// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
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
	// as large a share as disagreement, for longer than it takes to hear of changes, probes
	// all itself.
	leastDisagreement = 3
	disagreement      = 0.02
	disagreementTime  = 5 * time.Second
)

// sharing is which targets this member probes less often. Fleet.mu guards it.
type sharing struct {
	ready     time.Time                 // from when on it may probe any less often
	alone     string                    // why it probes all at their intervals
	probes    map[uint64]bool           // targets of which it is a prober
	factors   map[*health.Target]Target // those that are probed less often
	choices   choices
	apart     bool                 // it disagrees with the probers about many targets
	disagrees time.Time            // since when it does, zero if it does not
	doubted   map[uint64]time.Time // when any member last found a fault with a target
}

// choices are which members probe targets. To choose them takes time for each member that
// has the target, so they are kept while the members are the same.
type choices struct {
	members uint64 // a sum of what they depend on
	made    map[Target]choice
}

// choice is the probers of a target, and how many members have it.
type choice struct {
	id      uint64 // of the target
	probers []*member
	have    int
}

func newSharing() sharing {
	return sharing{factors: make(map[*health.Target]Target), doubted: make(map[uint64]time.Time)}
}

// doubt notes what any member says of a target.
func (s *sharing) doubt(id uint64, status string, now time.Time) {
	if status == statusUp {
		delete(s.doubted, id)
	} else {
		s.doubted[id] = now
	}
}

// isFirst reports whether no member has doubted a target lately, or all is well again.
func (s *sharing) isFirst(id uint64, now time.Time, period time.Duration) bool {
	maps.DeleteFunc(s.doubted, func(_ uint64, at time.Time) bool { return now.Sub(at) >= period })
	_, doubted := s.doubted[id]
	return s.alone == "" && !doubted
}

// of returns the choice for a target.
func (c *choices) of(t Target, live []candidate, probers int) choice {
	made, ok := c.made[t]
	if !ok {
		made = choose(live, targetID(t.Upstream, t.Check), probers)
		c.made[t] = made
	}
	return made
}

// depend drops the choices if the members have changed, or what they have, or if most are
// of targets that have gone.
func (c *choices) depend(live []candidate, targets int) {
	sum := uint64(0)
	for _, m := range live {
		sum = mix(sum ^ m.id)
		sum = mix(sum ^ m.hasSum)
		sum = mix(sum ^ uint64(m.first.UnixNano()))
	}
	if sum != c.members || c.made == nil || len(c.made) > 2*targets {
		c.members, c.made = sum, make(map[Target]choice, targets)
	}
}

// isProber reports whether this member is one of the probers of a target.
func (s *sharing) isProber(id uint64) bool { return s.probes[id] }

// end ends the sharing: this member is no prober for others, and what is probed less often
// is returned, which is no more to be.
func (s *sharing) end() []thinned {
	s.alone, s.apart, s.disagrees, s.probes, s.choices = "", false, time.Time{}, nil, choices{}
	return s.change(nil, nil)
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
// changes.
func (s *sharing) arrange(f *Fleet, probers int, targets []Target, now time.Time) []thinned {
	s.probes = make(map[uint64]bool)
	if s.alone = s.whyAlone(f, now); s.alone != "" {
		return s.change(nil, targets)
	}
	var live []candidate
	for _, m := range append(f.roster.live(now), &f.roster.own) {
		if !m.Apart {
			live = append(live, candidate{m, parseID(m.ID)})
		}
	}
	s.choices.depend(live, len(targets))
	factors := make(map[*health.Target]int, len(targets))
	all, disagrees := 0, 0
	for _, t := range targets {
		chosen := s.choices.of(t, live, probers)
		status := t.Status()
		said := f.roster.compare(chosen, status, now)
		factor := 1
		// a member that is apart is none of those among which the probers are chosen
		some := chosen.have > len(chosen.probers) || chosen.have > 0 && f.roster.own.Apart
		switch {
		case said.isProber:
			s.probes[chosen.id] = true
		case some && said.differ == 0 && said.silent == 0:
			factor = (chosen.have + probers - 1) / probers
		case some && said.differ > 0 && said.agree == 0 && said.silent == 0:
			disagrees++
		}
		if some {
			all++
		}
		if known, ok := factors[t.Target]; !ok || factor < known {
			factors[t.Target] = factor
		}
	}
	before := s.apart
	if disagrees < max(leastDisagreement, int(disagreement*float64(all))) {
		s.disagrees = time.Time{}
	} else if s.disagrees.IsZero() {
		s.disagrees = now
	}
	if s.apart = !s.disagrees.IsZero() && now.Sub(s.disagrees) >= disagreementTime; s.apart {
		s.alone = fmt.Sprintf("it disagrees with those that probe %d of %d upstreams", disagrees, all)
	}
	if s.apart != before {
		f.roster.hasten()
	}
	return s.change(factors, targets)
}

// compared is what the probers of a target say of it.
type compared struct {
	isProber              bool // this member is one of them
	agree, differ, silent int  // how many others say what its status is here, say another, or say nothing
}

// compare returns what the probers of a target say of it. One that has not stored anything
// since another told the same as this member found does not say otherwise.
func (r *roster) compare(chosen choice, status health.Status, now time.Time) (c compared) {
	last := r.told[chosen.id]
	isNew := last.status == status.String() && now.Sub(last.at) < r.toldTime()
	for _, m := range chosen.probers {
		if m == &r.own {
			c.isProber = true
			continue
		}
		switch said := r.says(m, chosen.id, now); {
		case said == "":
			c.silent++
		case said == status.String():
			c.agree++
		case status != health.Unknown && (!isNew || !m.heard.Before(last.at)):
			c.differ++
		}
	}
	return c
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
	case f.roster.again > 0:
		return "the storage works again only now"
	case now.Before(s.ready):
		return "its config is new"
	default:
		return ""
	}
}

// choose returns the probers of a target among the members that have it, by rendezvous
// hashing (Thaler and Ravishankar, 1998): those with the highest weights.
func choose(live []candidate, target uint64, probers int) choice {
	seed := mix(target)
	var weights []uint64
	c := choice{id: target}
	for _, m := range live {
		if !m.hasTarget(target) {
			continue
		}
		c.have++
		weight := mix(m.id ^ seed)
		i, _ := slices.BinarySearchFunc(weights, weight, func(a, b uint64) int { return cmp.Compare(b, a) })
		if i >= probers {
			continue
		}
		weights = slices.Insert(weights, i, weight)
		c.probers = slices.Insert(c.probers, i, m.member)
		if len(weights) > probers {
			weights, c.probers = weights[:probers], c.probers[:probers]
		}
	}
	return c
}

// says returns the status that a member has for a target, empty if that is not known. What
// it told by the news is newer than what it stored, for as long as that may be the one before.
func (r *roster) says(m *member, id uint64, now time.Time) string {
	if last, ok := r.told[id]; ok && last.from == m.ID && now.Sub(last.at) < r.toldTime() {
		return last.status
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

// toldTime is how long what a member told by the news can be newer than what it stored.
func (r *roster) toldTime() time.Duration { return 2 * r.period() }

// doubt notes what a member says of a target.
func (r *roster) doubt(e news.Entry, now time.Time) {
	if e.Status != statusDown && e.Status != statusUp {
		return
	}
	r.told[parseID(e.Key)] = told{e.From, e.Status, now}
}

// forgetTold drops what was told long ago.
func (r *roster) forgetTold(now time.Time) {
	maps.DeleteFunc(r.told, func(_ uint64, t told) bool { return now.Sub(t.at) >= r.toldTime() })
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
