// SPDX-License-Identifier: Apache-2.0

package view

import (
	"fmt"
	"slices"
	"strings"
)

// States are the words for the state of an upstream, as [Upstream.State] has them: from the one
// that needs a look most to the one that needs none.
var States = []string{"down", "ejected", "suspect", "unknown", "draining", "maintenance", "up"}

// Pool is one pool: all handlers whose pools have the same name.
type Pool struct {
	Pool string `json:"pool"`
	// Upstreams is how many there are, and States how many of those that requests bring are in
	// each of the states. Those that requests no longer bring do not count.
	Upstreams int            `json:"upstreams"`
	States    map[string]int `json:"states"`
	// Idle is how many of the upstreams requests do not bring at present.
	Idle int `json:"idle"`
	// Serving is how many upstreams serve, and Receiving how many get requests now.
	Serving   int `json:"serving"`
	Receiving int `json:"receiving"`
	// Groups is how many groups of upstreams there are, that of the primaries included.
	// GroupsInUse are those of which an upstream gets requests now, by number.
	Groups      int   `json:"groups"`
	GroupsInUse []int `json:"groups_in_use"`
	// Requests are those in flight to its upstreams.
	Requests int `json:"requests"`
	// Queue is null if the pool has none.
	Queue *Queue `json:"queue"`
	// FailOpen says that the pool ignores health at this moment.
	FailOpen bool `json:"fail_open"`
	// Empty says that requests find no upstream, because the dynamic source returns none.
	Empty bool `json:"empty"`
	// RequestsPerSecond is how many requests its upstreams got in each of the last ten seconds,
	// retries included. RecentFailures is how many in the last minute failed in a way that accuses
	// an upstream, and FailureShare which part of that minute's requests these are, from 0 to 1.
	RequestsPerSecond float64 `json:"requests_per_second"`
	RecentFailures    uint64  `json:"recent_failures"`
	FailureShare      float64 `json:"failure_share"`

	// Trend is its traffic in the last minutes, the oldest point first.
	Trend []TrendPoint `json:"-"`
}

// Queue is how many requests wait for an upstream that is not full, and how many may.
type Queue struct {
	Waiting int `json:"waiting"`
	Limit   int `json:"limit"`
}

// NewPool returns a pool of that name without upstreams.
func NewPool(name string) Pool {
	p := Pool{Pool: name, States: make(map[string]int, len(States)), Groups: 1, GroupsInUse: []int{}}
	for _, state := range States {
		p.States[state] = 0
	}
	return p
}

// Pools returns the pools that have upstreams, in the order of the rows. The rows do not
// know of queues.
func Pools(rows []Upstream) []Pool {
	var pools []Pool
	at := make(map[string]int) // by name
	for i := range rows {
		if rows[i].Gone {
			continue
		}
		place, seen := at[rows[i].Pool]
		if !seen {
			place = len(pools)
			at[rows[i].Pool] = place
			pools = append(pools, NewPool(rows[i].Pool))
		}
		pools[place].add(&rows[i])
	}
	return pools
}

// add adds an upstream to the sums.
func (p *Pool) add(row *Upstream) {
	p.Requests += row.Requests
	if row.Stale {
		return
	}
	p.Upstreams++
	p.Groups = max(p.Groups, row.Group+1)
	if row.Idle {
		p.Idle++
		return
	}
	p.States[row.State()]++
	if row.Serving {
		p.Serving++
	}
	p.FailOpen = p.FailOpen || row.FailOpen
	if row.EffectiveWeight > 0 {
		p.Receiving++
		if i, known := slices.BinarySearch(p.GroupsInUse, row.Group); !known {
			p.GroupsInUse = slices.Insert(p.GroupsInUse, i, row.Group)
		}
	}
}

// isPresent reports whether the pool balances over anything at present: requests bring
// upstreams, or the config lists them.
func (p *Pool) isPresent() bool { return p.Upstreams > p.Idle }

// isOut reports whether no upstream of a pool that balances serves, or requests find none.
func (p *Pool) isOut() bool { return p.Empty || p.isPresent() && p.Serving == 0 }

// Alarm is what must not be overlooked of a pool, empty if there is nothing. It can be
// called on nil.
func (p *Pool) Alarm() string {
	switch {
	case p == nil:
		return ""
	case p.Empty:
		return "A dynamic source returns no upstreams: requests of its handler are answered 503."
	case !p.isPresent():
		return ""
	case p.FailOpen && p.Serving == 0:
		return "Fail-open: no upstream serves, so requests go to upstreams whatever their health."
	case p.FailOpen:
		return "Fail-open: too few upstreams serve, so requests go to upstreams whatever their health."
	case p.Serving > 0:
		return ""
	case p.Receiving > 0:
		return "No upstream serves: requests go to upstreams that drain, are ejected, or have no verdict yet."
	default:
		return "No upstream serves, and none gets requests: they are answered 503."
	}
}

// Facts say in a few words how the pool is: how many upstreams serve, what the others are,
// which backups get requests, and how many requests are in flight and wait. It can be
// called on nil, of which there are none.
func (p *Pool) Facts() []string {
	if p == nil {
		return nil
	}
	facts := []string{"no upstreams at present"}
	if p.Upstreams > 0 {
		facts[0] = fmt.Sprintf("%d of %d serve", p.Serving, p.Upstreams)
	}
	for _, state := range States {
		switch n := p.States[state]; {
		case n == 0 || state == "up":
		case state == "maintenance":
			facts = append(facts, fmt.Sprintf("%d in maintenance", n))
		default:
			facts = append(facts, fmt.Sprintf("%d %s", n, state))
		}
	}
	if p.Idle > 0 {
		facts = append(facts, fmt.Sprintf("%d idle", p.Idle))
	}
	if backups := p.backupsInUse(); len(backups) > 0 {
		facts = append(facts, strings.Join(backups, " and ")+" in use")
	}
	if p.FailOpen {
		facts = append(facts, "fail-open")
	}
	facts = append(facts, fmt.Sprintf("%d in flight", p.Requests))
	if p.Queue != nil {
		facts = append(facts, fmt.Sprintf("%d of %d wait", p.Queue.Waiting, p.Queue.Limit))
	}
	return facts
}

// backupsInUse returns the names of the groups of backups that get requests.
func (p *Pool) backupsInUse() (names []string) {
	for _, group := range p.GroupsInUse {
		if name := p.GroupName(group); name != "" {
			names = append(names, name)
		}
	}
	return names
}

// GroupName is what an upstream of a group is called: "backup", or "backup 2" if the pool
// has several groups of backups. It is empty for a primary. It can be called on nil.
func (p *Pool) GroupName(group int) string {
	switch {
	case group == 0:
		return ""
	case p == nil, p.Groups <= 2:
		return "backup"
	default:
		return fmt.Sprintf("backup %d", group)
	}
}

// PoolsByName finds the pool of a row.
type PoolsByName map[string]*Pool

// ByName returns an index of pools.
func ByName(pools []Pool) PoolsByName {
	index := make(PoolsByName, len(pools))
	for i := range pools {
		index[pools[i].Pool] = &pools[i]
	}
	return index
}

// Of returns the pool of a row, nil if the row is of none.
func (index PoolsByName) Of(row *Upstream) *Pool {
	if row.Gone {
		return nil
	}
	return index[row.Pool]
}

// Outages returns one line for each pool in which no upstream serves.
func Outages(pools []Pool) (lines []string) {
	for i := range pools {
		if p := &pools[i]; p.isOut() {
			lines = append(lines, fmt.Sprintf("pool %s: %s", p.Pool, p.Alarm()))
		}
	}
	return lines
}
