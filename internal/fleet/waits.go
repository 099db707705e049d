// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/news"
	"github.com/caddy-alive/caddy-alive/internal/settings"
)

const (
	// maxWaits is how many waits of this member run at once.
	maxWaits = 16
	// settleLooks is how many looks a wait takes at least. A member that has read the settings
	// before they changed has told of itself by then.
	settleLooks = 3
	// keepDone is how long others are told of a wait that has succeeded.
	keepDone = 2 * time.Second
)

// waits are those for upstreams to be quiet. Fleet.mu guards them.
type waits struct {
	own    []*wait
	quiet  map[string]followed // by hash of the address: since when this member follows the mode
	hashes map[string]string   // of addresses that have a setting, by hash
}

// followed is since when a member follows a mode.
type followed struct {
	revision time.Time
	since    time.Time
}

// wait is one of this member.
type wait struct {
	entry    news.Entry
	upstream string
	mode     settings.Mode
	began    time.Time
	listed   time.Time // when all members were last listed since it began
	quiet    bool      // all live members are, and no other has joined
	done     time.Time // when it succeeded
	ended    bool      // the others are told no more
}

// runs reports whether the wait goes on.
func (w *wait) runs(now time.Time) bool { return w.done.IsZero() && now.Sub(w.began) < w.entry.For }

// add begins a wait.
func (w *waits) add(set *settings.Setting, from string, d time.Duration, now time.Time) (*wait, error) {
	upstream := set.Address
	w.own = slices.DeleteFunc(w.own, func(one *wait) bool {
		return one.ended && now.Sub(one.began) >= one.entry.For || one.upstream == upstream
	})
	if i := slices.IndexFunc(w.own, func(one *wait) bool { return one.ended }); len(w.own) >= maxWaits && i >= 0 {
		w.own = slices.Delete(w.own, i, i+1) // the oldest of which the others are told no more
	}
	if len(w.own) >= maxWaits {
		return nil, fmt.Errorf("%d waits run already, which is the most at one Caddy; try again when one has ended", maxWaits)
	}
	one := &wait{upstream: upstream, mode: set.ModeNow(), began: now, entry: news.Entry{
		ID: news.NewID(), Kind: news.Wait, Key: settings.Hash(upstream), From: from, At: set.Changed, For: d,
	}}
	w.own = append(w.own, one)
	return one, nil
}

// of returns the wait for an upstream, nil if there is none.
func (w *waits) of(upstream string) *wait {
	i := slices.IndexFunc(w.own, func(one *wait) bool { return one.upstream == upstream })
	if i < 0 {
		return nil
	}
	return w.own[i]
}

// areOwn reports whether this member waits.
func (w *waits) areOwn(now time.Time) bool {
	return slices.ContainsFunc(w.own, func(one *wait) bool { return one.runs(now) })
}

// needList reports whether a wait needs a list of all members, because it has begun.
func (w *waits) needList(now time.Time) bool {
	return slices.ContainsFunc(w.own, func(one *wait) bool { return one.runs(now) && one.listed.IsZero() })
}

// list notes that all members were listed.
func (w *waits) list(now time.Time) {
	for _, one := range w.own {
		one.listed = now
	}
}

// announce tells the board which waits of this member run. It returns the addresses that
// are waited for by any member, with the modes that this member follows, by hash: an
// address is empty if this member knows none of that hash.
func (w *waits) announce(board *news.Board, c *Config, now time.Time) map[string]string {
	for _, one := range w.own {
		switch over := !one.runs(now) && (one.done.IsZero() || now.Sub(one.done) > keepDone); {
		case over && !one.ended:
			one.ended = true
			board.End(one.entry.ID)
		case !over:
			board.Announce(one.entry)
		}
	}
	addresses := make(map[string]string)
	for _, e := range board.Waits() {
		addresses[e.Key] = ""
	}
	for _, one := range w.own {
		if !one.ended {
			addresses[one.entry.Key] = ""
		}
	}
	w.resolve(addresses, c.Set)
	maps.DeleteFunc(w.quiet, func(hash string, _ followed) bool { _, still := addresses[hash]; return !still })
	return addresses
}

// resolve finds the addresses of hashes among those that have a setting.
func (w *waits) resolve(addresses map[string]string, set *settings.Set) {
	if len(addresses) == 0 {
		w.hashes = nil
		return
	}
	known := w.hashes
	for hash := range addresses {
		if known[hash] == "" {
			known = nil
		}
	}
	if known == nil {
		known = make(map[string]string)
		for address := range set.All() {
			known[settings.Hash(address)] = address
		}
		w.hashes = known
	}
	for hash := range addresses {
		addresses[hash] = known[hash]
	}
}

// follows returns since when this member follows the mode of an address.
func (w *waits) follows(hash string, revision, now time.Time) time.Time {
	if w.quiet == nil {
		w.quiet = make(map[string]followed)
	}
	if f, ok := w.quiet[hash]; ok && f.revision.Equal(revision) {
		return f.since
	}
	w.quiet[hash] = followed{revision, now}
	return now
}
