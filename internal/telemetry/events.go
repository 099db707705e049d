// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"context"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-alive/caddy-alive/internal/health"
)

// maxEvents is how many events wait at most while a handler is slow.
const maxEvents = 1024

// Event is one event.
type Event struct {
	Name string
	Data map[string]any
}

// Queue passes the events of a config to emit, one after the other. Emit never waits,
// because an event handler may be slow, or call the admin API. At its end, a queue
// hands the waiting events to its successor: the queue of the newest other config that
// is running.
//
// The methods Emit, StatusChanged, FailOpen, Ejected, MoreEjected and Successor can be
// called on nil.
type Queue struct {
	emit    func(name string, data map[string]any)
	running func() []*Queue
	logger  *zap.Logger
	wake    chan struct{}

	mu    sync.Mutex // guards what follows
	queue []Event
	lost  bool // an event was dropped, and that was logged
	ended bool // the config has ended, and the queue is handed on
}

// NewQueue returns a queue that calls emit. Its events wait until Run is called. The
// function running returns the queues of the running configs, the newest last.
func NewQueue(logger *zap.Logger, emit func(name string, data map[string]any), running func() []*Queue) *Queue {
	return &Queue{emit: emit, running: running, logger: logger, wake: make(chan struct{}, 1)}
}

// Emit adds an event to the queue.
func (q *Queue) Emit(name string, data map[string]any) {
	if q == nil {
		return
	}
	q.mu.Lock()
	if q.ended {
		q.mu.Unlock()
		q.Successor().Emit(name, data)
		return
	}
	full := len(q.queue) >= maxEvents
	warn := full && !q.lost
	q.lost = full
	if !full {
		q.queue = append(q.queue, Event{name, data})
	}
	q.mu.Unlock()
	if warn {
		q.logger.Warn("event handlers are too slow: events are dropped", zap.Int("waiting", maxEvents))
	}
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// StatusChanged emits a change of status. A change that only concerns draining is no
// event.
func (q *Queue) StatusChanged(upstream, check string, t health.Transition) {
	if t.From == t.To {
		return
	}
	name := "healthy"
	if t.To == health.Down {
		name = "unhealthy"
	}
	q.Emit(name, map[string]any{
		"host": upstream, "upstream": upstream, "check": check,
		"reason": t.Reason, "previous_duration": t.Lasted.String(),
	})
}

// FailOpen emits that a pool begins to ignore health, or ends it.
func (q *Queue) FailOpen(pool string, active bool) {
	q.Emit("fail_open", map[string]any{"pool": pool, "active": active})
}

// Ejected emits an ejection, which is one of several in a row.
func (q *Queue) Ejected(pool, upstream, reason string, lasts time.Duration, inRow int) {
	q.Emit("ejected", map[string]any{
		"pool": pool, "upstream": upstream, "reason": reason, "duration": lasts.String(), "in_a_row": inRow, "more": 0,
	})
}

// MoreEjected emits the sum of ejections that had no event of their own.
func (q *Queue) MoreEjected(pool, reason string, n int) {
	q.Emit("ejected", map[string]any{
		"pool": pool, "upstream": "", "reason": reason, "duration": "", "in_a_row": 0, "more": n,
	})
}

// Run emits events until the context ends.
func (q *Queue) Run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-q.wake:
		}
		for e, ok := q.Next(); ok; e, ok = q.Next() {
			q.emit(e.Name, e.Data)
		}
	}
}

// Next takes the first event that waits.
func (q *Queue) Next() (e Event, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.queue) == 0 {
		return e, false
	}
	e, q.queue = q.queue[0], q.queue[1:]
	return e, true
}

// End hands on the waiting events, and those that are emitted later, in order. Without
// a successor there are no handlers any more, and all events are dropped.
func (q *Queue) End() {
	successor := q.Successor()
	for {
		q.mu.Lock()
		if successor == nil || len(q.queue) == 0 {
			left := len(q.queue)
			q.queue, q.ended = nil, true
			q.mu.Unlock()
			if left > 0 {
				q.logger.Warn("the last config has ended: events are dropped", zap.Int("waiting", left))
			}
			return
		}
		e := q.queue[0]
		q.queue = q.queue[1:]
		q.mu.Unlock()
		successor.Emit(e.Name, e.Data)
	}
}

// Successor returns the queue of the newest running config other than this one that has
// not ended, nil if there is none.
func (q *Queue) Successor() *Queue {
	if q == nil {
		return nil
	}
	for _, other := range slices.Backward(q.running()) {
		if other != q && !other.Ended() {
			return other
		}
	}
	return nil
}

// Ended reports whether the queue has handed on all its events for good.
func (q *Queue) Ended() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.ended
}
