// SPDX-License-Identifier: Apache-2.0

package witness

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/shared"
)

// Hooks connect a handler. All are called with no lock held, from [Pool.Follow] on, and all
// are set. A call that is under way when the handler leaves may end later.
type Hooks struct {
	// Changed is called when an upstream becomes a suspect or is ejected, and afterwards.
	Changed func()
	// MayEject reports whether enough of the group of an upstream is left without it, also
	// when it is ejected already.
	MayEject func(*Upstream) bool
	// Accused is called with every accusation. Suspect says that it began a suspicion.
	Accused func(address string, cause Cause, reason string, suspect bool)
	// Acquitted is called when a suspicion ends because all checks pass.
	Acquitted func(address string)
	// Ejected is called with every ejection: why, until when, and how many there were in a
	// row.
	Ejected func(address, reason string, until time.Time, inRow int)
	// Returned is called when a trial has ended an ejection.
	Returned func(address string)
}

// Handler is the use of a pool by one reverse_proxy handler.
type Handler struct {
	Settings Settings
	Hooks    Hooks

	follows atomic.Bool // its hooks may be called
	running atomic.Bool
}

// SetRunning says whether the probes of the handler run. The newest handler whose probes
// run decides by its settings and checks.
func (h *Handler) SetRunning(running bool) { h.running.Store(running) }

// wantsStalls reports whether stalls accuse.
func (h *Handler) wantsStalls() bool { return !h.Settings.Off && h.Settings.Stall >= 0 }

// Pool has the upstreams of all handlers and configs whose pools have one name. So a
// reload disturbs nothing.
type Pool struct {
	name string

	list     atomic.Pointer[[]*Upstream] // never changed, but replaced
	sampled  atomic.Bool                 // a handler wants to know of stalls
	sampling atomic.Bool                 // the sampler runs

	mu       sync.Mutex // guards what follows, and writing to the above
	handlers []*Handler
	byName   map[string]*Upstream
	timer    *time.Timer // nil before the first sample
	due      time.Time   // the next sample is
	closed   bool

	working sync.WaitGroup // the sample that is being taken
}

// Join returns the pool of a name, for a handler. The pool may be in use by another one, and
// changes at any moment: no hook is called before Follow. Leave must follow.
func Join(name string, h *Handler) (*Pool, error) {
	found, _, err := shared.Witnesses.LoadOrNew(name, func() (caddy.Destructor, error) { return newPool(name), nil })
	if err != nil {
		return nil, err
	}
	p := found.(*Pool)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.handlers = append(p.handlers, h)
	p.sampled.Store(slices.ContainsFunc(p.handlers, (*Handler).wantsStalls))
	return p, nil
}

// Follow has the hooks of a handler called from now on. What has changed since Join is not
// told.
func (p *Pool) Follow(h *Handler) { h.follows.Store(true) }

func newPool(name string) *Pool {
	p := &Pool{name: name, byName: make(map[string]*Upstream)}
	p.list.Store(new([]*Upstream))
	return p
}

// Leave undoes Join and Follow, after all upstreams of the handler were removed.
func (p *Pool) Leave(h *Handler) error {
	h.follows.Store(false)
	p.mu.Lock()
	p.handlers = slices.DeleteFunc(p.handlers, func(other *Handler) bool { return other == h })
	p.sampled.Store(slices.ContainsFunc(p.handlers, (*Handler).wantsStalls))
	p.mu.Unlock()
	_, err := shared.Witnesses.Delete(p.name)
	return err
}

// Destruct ends the sampler when the last handler has left, and waits for it.
func (p *Pool) Destruct() error {
	p.mu.Lock()
	p.closed = true
	if p.timer != nil {
		p.timer.Stop()
	}
	p.mu.Unlock()
	p.working.Wait()
	return nil
}

// Add returns the upstream at an address, which the handler probes by these targets.
// Remove must follow.
func (p *Pool) Add(h *Handler, address string, targets []*health.Target) *Upstream {
	p.mu.Lock()
	defer p.mu.Unlock()
	u := p.byName[address]
	if u == nil {
		u = &Upstream{Address: address, pool: p}
		p.byName[address] = u
		p.replaceList()
	}
	u.bind(h, targets)
	return u
}

// Remove undoes Add.
func (p *Pool) Remove(h *Handler, u *Upstream) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if u.unbind(h) && p.byName[u.Address] == u {
		delete(p.byName, u.Address)
		p.replaceList()
	}
}

// replaceList lists the upstreams anew. p.mu must be held.
func (p *Pool) replaceList() {
	list := make([]*Upstream, 0, len(p.byName))
	for _, u := range p.byName {
		list = append(list, u)
	}
	p.list.Store(&list)
}

// changed tells all handlers that follow that something has changed.
func (p *Pool) changed() {
	p.mu.Lock()
	handlers := slices.Clone(p.handlers)
	p.mu.Unlock()
	for _, h := range handlers {
		if h.follows.Load() {
			h.Hooks.Changed()
		}
	}
}

const (
	// troubleFor is how long it counts that an upstream had trouble.
	troubleFor = 30 * time.Second
	// commonShare: if more than one of so many upstreams have trouble, it is not theirs.
	commonShare = 3
)

// isCommonTrouble reports whether so many upstreams have trouble that the cause is not one
// of them: too many requests, or requests that fail everywhere.
func (p *Pool) isCommonTrouble(now time.Time) bool {
	list := *p.list.Load()
	n := 0
	for _, u := range list {
		if t := u.trouble.Load(); t != nil && now.Sub(*t) < troubleFor {
			n++
		}
	}
	return n > 1 && commonShare*n > len(list)
}

// tryEjected makes the trials of all ejected upstreams due.
func (p *Pool) tryEjected(now time.Time) {
	due := false
	for _, u := range *p.list.Load() {
		due = u.ejection.shorten(now) || due
	}
	if due {
		p.changed()
	}
}

const (
	// samples is how many samples there are in the time of a stall.
	samples = 4
	// onTime is how late a sample may be and still be on time.
	onTime = 20 * time.Millisecond
)

// watch starts the sampler, if it does not run.
func (p *Pool) watch() {
	if p.sampling.Load() || !p.sampled.Load() {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.sampling.Swap(true) {
		return
	}
	p.arm(p.period())
}

// arm sets when the next sample is due. p.mu must be held.
func (p *Pool) arm(period time.Duration) {
	p.due = time.Now().Add(period)
	if p.timer == nil {
		p.timer = time.AfterFunc(period, p.sample)
	} else {
		p.timer.Reset(period)
	}
}

// period returns the time between two samples: a part of the shortest stall that there can
// be, because requests may begin to wait for any upstream meanwhile. p.mu must be held.
func (p *Pool) period() time.Duration {
	period := maxStall / samples
	for _, h := range p.handlers {
		if h.wantsStalls() {
			period = min(period, cmp.Or(h.Settings.Stall, minStall)/samples)
		}
	}
	return period
}

// hasWaiting reports whether requests wait for an upstream whose stalls accuse.
func (p *Pool) hasWaiting() bool {
	return slices.ContainsFunc(*p.list.Load(), func(u *Upstream) bool {
		h := u.handler()
		return h != nil && h.wantsStalls() && u.flow.isWaiting()
	})
}

// sample looks at all upstreams for which requests wait. It ends when none do.
func (p *Pool) sample() {
	now := time.Now()
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return
	}
	p.working.Add(1)
	defer p.working.Done()
	late := now.Sub(p.due)
	if late <= onTime {
		late = 0
	}
	p.mu.Unlock()
	waiting := false
	for _, u := range *p.list.Load() {
		if !u.flow.isWaiting() && u.flow.pace.since.IsZero() {
			continue
		}
		h := u.handler()
		if h == nil || !h.wantsStalls() {
			continue
		}
		waiting = true
		if u.flow.sample(now, epochOf(u.stage.Load()), late, &h.Settings) && !u.ejection.isOn() {
			u.accuse(accusation{cause: Stall, reason: "no first byte came for " + u.flow.stall(&h.Settings).Round(time.Millisecond).String() + " while requests wait"})
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.closed:
	case waiting:
		p.arm(p.period())
	default:
		p.sampling.Store(false)
		if p.hasWaiting() && !p.sampling.Swap(true) { // a request has come just now
			p.arm(p.period())
		}
	}
}
