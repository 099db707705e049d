// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"context"
	"errors"
	"maps"
	"path"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/news"
	"github.com/caddy-alive/caddy-alive/internal/storage"
)

// readers is how many members are read at once.
const readers = 16

// acks returns what this member says of addresses, by hash.
func (p *Part) acks(addresses map[string]string, now time.Time) map[string]ack {
	if len(addresses) == 0 {
		return nil
	}
	acks := make(map[string]ack, len(addresses))
	for hash, address := range addresses {
		set := p.config.Set.Of(address)
		if address == "" || set == nil {
			continue // what is waited for has not come here yet
		}
		requests := p.config.Local.Requests(address)
		p.fleet.mu.Lock()
		since := p.fleet.waits.follows(hash, set.Changed, now)
		p.fleet.mu.Unlock()
		a := ack{Revision: set.Changed, InFlight: requests.InFlight, Bound: requests.Bound, Gets: requests.Gets}
		a.Quiet = a.InFlight == 0 && !a.Gets && now.Sub(since) >= p.config.Every
		acks[hash] = a
	}
	return acks
}

// write returns what this member stores of itself.
func (p *Part) write(acks map[string]ack, now time.Time) ([]byte, value) {
	f := p.fleet
	notUpHere, targets := p.config.Local.NotUp(), p.config.Local.Targets()
	f.mu.Lock()
	v := value{
		Version: valueVersion, Fleet: p.config.Fleet, ID: f.id, Name: p.config.Member,
		Seq: f.roster.own.Seq + 1, Seconds: f.roster.period().Seconds(), Since: f.since, At: now.UTC(),
		Apart: f.sharing.apart,
	}
	f.mu.Unlock()
	if p.config.Probers > 0 {
		ids := make([]uint64, 0, len(targets))
		for _, t := range targets {
			ids = append(ids, targetID(t.Upstream, t.Check))
		}
		v.setTargets(ids)
	}
	text, err := v.encode(notUpHere, acks)
	if err != nil { // no value of it can cause that
		p.config.Logger.Error("encoding what this member of the fleet stores", zap.Error(err))
	}
	return text, v
}

// list returns the IDs of all members in the storage.
func (p *Part) list(ctx context.Context, engine storage.Engine) (ids []string, err error) {
	keys, err := engine.List(ctx, p.memberPrefix(), ".json")
	for _, key := range keys {
		if id, ok := isKey(path.Base(key)); ok && key == p.memberKey(id) {
			ids = append(ids, id)
		}
	}
	return ids, err
}

// read reads members and takes over what they have stored.
func (p *Part) read(ctx context.Context, engine storage.Engine, ids []string) error {
	var mu sync.Mutex // guards what follows
	found := make(map[string]*value, len(ids))
	var invalid []string
	failed := make(map[string]error)
	var reading sync.WaitGroup
	next := make(chan string)
	for range min(readers, len(ids)) {
		reading.Go(func() {
			for id := range next {
				v, err := p.readOne(ctx, engine, id)
				mu.Lock()
				switch {
				case errors.Is(err, errInvalid):
					invalid = append(invalid, id)
				case err != nil:
					failed[id] = err
				default:
					found[id] = v
				}
				mu.Unlock()
				p.store.GoOn()
			}
		})
	}
	for _, id := range ids {
		next <- id
	}
	close(next)
	reading.Wait()
	f := p.fleet
	f.mu.Lock()
	f.roster.take(found, f.problem == "", time.Now())
	f.roster.ignore(invalid, time.Now())
	missing, crowded := f.roster.missing, f.roster.crowded
	f.mu.Unlock()
	if crowded {
		p.warnOnce(noMember, "the fleet has more members than are followed, the lost ones included: no wait for it succeeds", zap.Int("most", maxMembers))
	}
	if missing && slices.Contains(ids, f.id) {
		return errNotReadBack
	}
	return p.judge(failed, found)
}

// judge returns the error of the storage, where members could not be read. If this member
// could read what it has stored itself, the trouble is not the storage's, but that of one key:
// of a file that may not be read, for example.
func (p *Part) judge(failed map[string]error, found map[string]*value) error {
	if found[p.fleet.id] == nil {
		return errors.Join(slices.Collect(maps.Values(failed))...)
	}
	for id, err := range failed {
		p.warnOnce(id, "a member of the fleet cannot be read: no wait succeeds until it is", zap.String("key", p.memberKey(id)), zap.Error(err))
	}
	return nil
}

var errNotReadBack = errors.New("what this member has stored of itself is not there")

// errInvalid says that what is stored of a member makes no sense.
var errInvalid = errors.New("it is not valid")

// readOne reads a member: nil if there is none.
func (p *Part) readOne(ctx context.Context, engine storage.Engine, id string) (*value, error) {
	p.fleet.mu.Lock()
	known := p.fleet.roster.invalid[id] // it may be large, and need not be read again
	p.fleet.mu.Unlock()
	text, err := engine.Load(ctx, p.memberKey(id), maxValue, known)
	if text == nil && err == nil {
		return nil, nil
	}
	var v *value
	if err == nil {
		v, err = parseValue(text, p.config.Fleet, id)
	} else if !engine.IsTooLong(err) {
		return nil, err
	}
	if err == nil && v.isNewer() {
		p.warnOnce(id, "a member of the fleet runs a newer version: what it says of upstreams is not known, and no wait succeeds", zap.String("key", p.memberKey(id)), zap.String("member", v.Name))
	}
	if err != nil {
		p.warnOnce(id, "ignoring a member of the fleet: what it has stored is not valid", zap.String("key", p.memberKey(id)), zap.Error(err))
		return nil, errInvalid
	}
	return v, nil
}

// noMember stands for none in what was logged.
const noMember = ""

// warnOnce logs a warning once for each member.
func (p *Part) warnOnce(id, text string, fields ...zap.Field) {
	f := p.fleet
	f.mu.Lock()
	logged := f.roster.invalid[id]
	f.roster.invalid[id] = true
	f.mu.Unlock()
	if !logged {
		p.config.Logger.Warn(text, fields...)
	}
}

// forget deletes the members that are lost for long, or came back by another ID.
func (p *Part) forget(ctx context.Context, engine storage.Engine) error {
	f := p.fleet
	f.mu.Lock()
	ids := f.roster.drop(time.Now())
	f.mu.Unlock()
	errs := make([]error, 0, len(ids))
	for _, id := range ids {
		errs = append(errs, engine.Delete(ctx, p.memberKey(id)))
	}
	return errors.Join(errs...)
}

// follow probes what others doubt.
func (p *Part) follow(fresh []news.Entry) {
	doubts := slices.DeleteFunc(slices.Clone(fresh), func(e news.Entry) bool { return e.Kind != news.Doubt })
	if len(doubts) == 0 || p.config.Probers == 0 {
		return
	}
	targets := byID(p.config.Local.Targets())
	now := time.Now()
	f := p.fleet
	f.mu.Lock()
	f.roster.forgetTold(now)
	for _, e := range doubts {
		if id := parseID(e.Key); targets[id] != nil { // what is remembered has a bound
			f.roster.doubt(e, now)
			f.sharing.doubt(id, e.Status, now)
		}
	}
	f.mu.Unlock()
	for _, e := range doubts {
		for _, t := range targets[parseID(e.Key)] {
			if !t.Accuse(false, func(health.Verdict) {}) && e.Status != statusDown {
				t.ProbeNow()
			}
		}
	}
}

// Found is told that a target failed twice in a row, or that its status changed. The first
// member that finds a fault tells the others. It need not be a prober: those may be gone, or
// may reach the target while others do not. Probers also tell each change.
func (p *Part) Found(upstream, check string, status health.Status, changed bool) {
	f := p.fleet
	f.mu.Lock()
	defer f.mu.Unlock()
	if !p.acts() {
		return
	}
	if changed {
		f.roster.hasten()
	}
	if p.config.Probers == 0 {
		return
	}
	id, now := targetID(upstream, check), time.Now()
	tells := changed && f.sharing.isProber(id) // all can then compare
	if !tells && (changed && status == health.Up || !f.sharing.isFirst(id, now, f.roster.period())) {
		return
	}
	e := news.Entry{Kind: news.Doubt, Key: formatID(id), From: f.id, Status: statusFails}
	if changed {
		e.Status = status.String()
	}
	f.sharing.doubt(id, e.Status, now)
	if p.store.Board().Add(e) {
		p.store.Wake() // what else it finds until then is told at the next look
	}
}

// arrange decides which targets this member probes less often, because others probe them.
func (p *Part) arrange() {
	f := p.fleet
	var targets []Target
	if p.config.Probers > 0 {
		targets = p.config.Local.Targets()
	}
	f.mu.Lock()
	if !p.acts() {
		f.mu.Unlock()
		return
	}
	var thin []thinned
	if p.config.Probers > 0 {
		thin = f.sharing.arrange(f, p.config.Probers, targets, time.Now())
	} else { // it may have been another in the config before
		thin = f.sharing.end()
	}
	f.mu.Unlock()
	f.thin(thin)
}
