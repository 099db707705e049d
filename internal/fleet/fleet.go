// SPDX-License-Identifier: Apache-2.0

// Package fleet is this Caddy as a member of a fleet: what it tells the others, what it
// hears of them, the waits for an upstream to be quiet everywhere, and which members probe
// which upstreams. All goes through the storage that the members share: one key a member,
// which it alone writes, and the news. It knows neither pools nor configs: those are behind
// [Local].
//
// Fleet.mu guards the state of all files here, except for what a comment says. It is not held
// while the storage, a target, a function of Local or a log line runs. The mutex of a
// news.Board may be taken while it is held.
package fleet

import (
	"context"
	"path"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/news"
	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/shared"
	"github.com/caddy-alive/caddy-alive/internal/storage"
	"github.com/caddy-alive/caddy-alive/internal/view"
)

// Local is what the fleet has to know of this Caddy.
type Local interface {
	// NotUp returns the upstreams that are not up here, by check.
	NotUp() []view.NotUp
	// Targets returns what is probed here.
	Targets() []Target
	// Requests returns what is known of the requests to an upstream.
	Requests(upstream string) Requests
}

// Requests are those of a member to an upstream.
type Requests struct {
	InFlight int
	// Bound is how many it got in the last minute because their clients are bound to it.
	Bound int
	// Gets says that it gets new ones.
	Gets bool
}

// Target is an upstream under a check, as the fleet shares its probes.
type Target struct {
	Upstream, Check string
	*health.Target
}

// Config is how this Caddy takes part in a fleet.
type Config struct {
	// Fleet is the name of the fleet, and Member that of this member.
	Fleet, Member string
	// Probers is how many members probe an upstream at its interval, 0 if all do.
	Probers int
	// Every is how often the members look at the news.
	Every  time.Duration
	Local  Local
	Set    *settings.Set
	Logger *zap.Logger
}

// Fleet is a fleet as this process knows it. It outlives reloads.
type Fleet struct {
	id    string
	since time.Time

	mu      sync.Mutex // guards what follows
	taking  []*Part    // those that have started, the newest last
	problem string     // why only this member is known
	roster  roster
	waits   waits
	sharing sharing
}

// New returns a fleet of which only this member is known.
func New() *Fleet {
	id := news.NewID()
	return &Fleet{id: id, since: time.Now().UTC(), roster: newRoster(id), sharing: newSharing()}
}

// Open returns the fleet of a scope, which all of the process share until each has called
// Close.
func Open(scope string) (*Fleet, error) {
	f, _, err := shared.Fleets.LoadOrNew(scope, func() (caddy.Destructor, error) { return New(), nil })
	if err != nil {
		return nil, err
	}
	return f.(*Fleet), nil
}

// Close takes back Open.
func Close(scope string) error {
	_, err := shared.Fleets.Delete(scope)
	return err
}

// Destruct has nothing to do.
func (*Fleet) Destruct() error { return nil }

// Part is one config's part in a fleet. At a reload there are two for a moment, and the
// newest that has started acts.
type Part struct {
	fleet  *Fleet
	config Config
	store  *settings.Store
}

// Join makes a store use the storage together with the other members of the fleet, from Start
// on.
func (f *Fleet) Join(store *settings.Store, config Config) *Part {
	p := &Part{fleet: f, config: config, store: store}
	store.Join(p)
	return p
}

// Start begins to act for this Caddy, and tells the other members.
func (p *Part) Start(ctx context.Context) {
	f := p.fleet
	f.mu.Lock()
	f.taking = append(f.taking, p)
	f.roster.write = time.Now() // its name or what it probes may have changed
	f.sharing.ready = f.roster.write.Add(f.roster.period())
	first := len(f.taking) == 1
	f.mu.Unlock()
	if first {
		p.store.Sync(ctx, false)
	}
}

// Stop takes back Start. The last one also takes this member out of the storage.
func (p *Part) Stop(ctx context.Context) {
	f := p.fleet
	f.mu.Lock()
	before, acted := len(f.taking), p.acts()
	f.taking = slices.DeleteFunc(f.taking, func(other *Part) bool { return other == p })
	last := before == 1 && len(f.taking) == 0
	var thin []thinned
	if last {
		thin = f.sharing.end()
	} else if acted { // it has failed to start as a whole: what the one before has is told again
		f.roster.write = time.Now()
	}
	f.mu.Unlock()
	f.thin(thin)
	if last {
		p.store.Use(ctx, func(ctx context.Context, e storage.Engine) error {
			return e.Delete(ctx, p.memberKey(f.id))
		})
	}
}

// thin makes targets be probed less often, or no more so. If that was taken back meanwhile,
// by an end or another look, it is taken back here, too.
func (f *Fleet) thin(targets []thinned) {
	for _, t := range targets {
		t.Thin(t.factor)
	}
	var late []Target
	f.mu.Lock()
	for _, t := range targets {
		if _, still := f.sharing.factors[t.Target.Target]; !still && t.factor > 1 {
			late = append(late, t.Target)
		}
	}
	f.mu.Unlock()
	for _, t := range late {
		t.Thin(1)
	}
}

// acts reports whether the part is the one that acts. f.mu must be held.
func (p *Part) acts() bool {
	parts := p.fleet.taking
	return len(parts) > 0 && parts[len(parts)-1] == p
}

// acting returns the part that acts, nil if there is none. f.mu must be held.
func (f *Fleet) acting() *Part {
	if len(f.taking) == 0 {
		return nil
	}
	return f.taking[len(f.taking)-1]
}

// memberKey returns where a member stores what it tells.
func (p *Part) memberKey(id string) string {
	return path.Join(p.memberPrefix(), id+".json")
}

func (p *Part) memberPrefix() string { return path.Join("alive/members", p.config.Fleet) }

// Size is how many members there are.
func (p *Part) Size() int {
	p.fleet.mu.Lock()
	defer p.fleet.mu.Unlock()
	return p.fleet.roster.size(time.Now())
}

// Announce tells the others what is new of this member.
func (p *Part) Announce(ctx context.Context, engine storage.Engine, board *news.Board) error {
	f := p.fleet
	f.mu.Lock()
	if !p.acts() {
		f.mu.Unlock()
		return nil
	}
	now := time.Now()
	addresses := f.waits.announce(board, &p.config, now)
	f.mu.Unlock()
	acks := p.acks(addresses, now)
	f.mu.Lock()
	due := f.roster.isDue(acks, now)
	joined := f.roster.joined
	f.mu.Unlock()
	if !due {
		return nil
	}
	text, own := p.write(acks, now)
	if err := engine.Store(ctx, p.memberKey(f.id), text); err != nil {
		return err
	}
	f.mu.Lock()
	f.roster.wrote(own, now)
	f.mu.Unlock()
	if !joined {
		board.Add(news.Entry{Kind: news.Member, Key: f.id})
	}
	return nil
}

// Follow takes over what others tell.
func (p *Part) Follow(ctx context.Context, engine storage.Engine, board *news.Board, fresh []news.Entry, all bool) error {
	f := p.fleet
	f.mu.Lock()
	if !p.acts() {
		f.mu.Unlock()
		return nil
	}
	now := time.Now()
	f.roster.renew(board.Born(), now)
	all = all || f.waits.needList(now) || f.roster.listed.IsZero()
	f.mu.Unlock()
	if err := p.refresh(ctx, engine, fresh, all); err != nil {
		return err
	}
	p.follow(fresh)
	if f.settle(all) {
		if err := p.refresh(ctx, engine, nil, true); err != nil {
			return err
		}
		f.settle(true)
	}
	return p.forget(ctx, engine)
}

// refresh reads the members that are due, after a list of all if that is wanted.
func (p *Part) refresh(ctx context.Context, engine storage.Engine, fresh []news.Entry, all bool) error {
	f := p.fleet
	now := time.Now()
	if all {
		ids, err := p.list(ctx, engine)
		if err != nil {
			return err
		}
		f.mu.Lock()
		f.roster.list(ids, now)
		f.waits.list(now)
		f.mu.Unlock()
	}
	f.mu.Lock()
	due := f.roster.toRead(fresh, all, f.waits.areOwn(now), now)
	f.mu.Unlock()
	return p.read(ctx, engine, due)
}

// Ended notes whether the storage works. While it does not, this member probes all.
func (p *Part) Ended(_ *news.Board, err error) {
	f := p.fleet
	f.mu.Lock()
	if !p.acts() {
		f.mu.Unlock()
		return
	}
	before := f.problem
	if f.problem = ""; err != nil {
		f.problem = firstLine(err)
	}
	if before != "" && f.problem == "" {
		f.roster.restart(time.Now())
	}
	f.mu.Unlock()
	p.arrange()
}
