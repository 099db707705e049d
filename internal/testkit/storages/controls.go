// SPDX-License-Identifier: Apache-2.0

package storages

import (
	"context"
	"strings"
	"sync"
	"time"
)

// Op is a kind of call.
type Op string

// The methods of a storage.
const (
	Load   Op = "Load"
	Store  Op = "Store"
	Delete Op = "Delete"
	List   Op = "List"
	Stat   Op = "Stat"
	Exists Op = "Exists"
	Lock   Op = "Lock"
	Unlock Op = "Unlock"
)

// Call is one call of a client.
type Call struct {
	Client    int // the number of the client, the first one has 1
	Op        Op
	Key       string // or the prefix of a List, or the name of a Lock
	Recursive bool   // of a List
	Value     []byte // of a Store, not to be changed
}

// controls are the faults and counts of an engine, or of one of its clients.
type controls struct {
	mu      sync.Mutex // guards what follows
	err     error
	hang    chan struct{} // until it is closed
	latency time.Duration
	breaks  int   // so many lists break off
	broken  error // what these return
	before  func(ctx context.Context, call Call) error
	counts  map[Op]map[string]int // by key
}

// Fail makes each call fail, until Mend: the engine is down. By some quirks, calls do not
// return the error.
func (c *controls) Fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = err
}

// Hang makes each call hang until Mend, or until its context ends. After Mend, a call that
// hung goes on.
func (c *controls) Hang() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.hang == nil {
		c.hang = make(chan struct{})
	}
}

// Mend ends Fail and Hang.
func (c *controls) Mend() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = nil
	if c.hang != nil {
		close(c.hang)
		c.hang = nil
	}
}

// SetLatency makes each call take so long. It has its effect in the middle of that time.
func (c *controls) SetLatency(latency time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.latency = latency
}

// BreakLists makes so many of the next lists break off, with a part of the keys and an
// error. It is fs.ErrNotExist for a folder from which another client removes a file, and nil
// for a storage that does not notice that its connection broke.
func (c *controls) BreakLists(lists int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.breaks, c.broken = lists, err
}

// Before sets what is called before each call, with no lock held. An error is what the call
// returns, whatever the quirk. Nil ends it. See also Pause.
func (c *controls) Before(hook func(ctx context.Context, call Call) error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.before = hook
}

// Count returns how many calls there were of keys that begin with a prefix, also those that
// failed.
func (c *controls) Count(op Op, prefix string) (calls int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for key, n := range c.counts[op] {
		if strings.HasPrefix(key, prefix) {
			calls += n
		}
	}
	return calls
}

// ResetCounts makes all counts begin at 0.
func (c *controls) ResetCounts() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counts = nil
}

// Pause waits, but not longer than the context.
func Pause(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// enter counts a call, and calls the hook.
func (c *controls) enter(ctx context.Context, call Call) error {
	c.mu.Lock()
	if c.counts == nil {
		c.counts = make(map[Op]map[string]int)
	}
	if c.counts[call.Op] == nil {
		c.counts[call.Op] = make(map[string]int)
	}
	c.counts[call.Op][call.Key]++
	before := c.before
	c.mu.Unlock()
	if before == nil {
		return nil
	}
	return before(ctx, call)
}

// wait waits while calls hang, and for half of the latency.
func (c *controls) wait(ctx context.Context) error {
	for {
		c.mu.Lock()
		hang := c.hang
		c.mu.Unlock()
		if hang == nil {
			break
		}
		select {
		case <-hang:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return c.half(ctx)
}

// half waits for half of the latency.
func (c *controls) half(ctx context.Context) error {
	c.mu.Lock()
	latency := c.latency
	c.mu.Unlock()
	return Pause(ctx, latency/2)
}

// outage returns why the engine cannot be reached, nil if it can be.
func (c *controls) outage() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// breaksOff reports whether a list breaks off, and with which error.
func (c *controls) breaksOff() (breaks bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.breaks == 0 {
		return false, nil
	}
	c.breaks--
	return true, c.broken
}
