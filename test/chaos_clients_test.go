// SPDX-License-Identifier: Apache-2.0

package test

import (
	"context"
	"io"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// chaosLoad is what an upstream is busy with.
type chaosLoad struct {
	now  atomic.Int64 // requests that it is answering
	most atomic.Int64 // at once, since the last check
	held atomic.Int64 // of these, those that wait for the gate
	gate atomic.Pointer[testkit.Gate]
}

// loadOf has a backend count the requests that it answers. It holds those for /held, after
// the beginning of the answer.
func loadOf(b *testkit.Backend) *chaosLoad {
	l := new(chaosLoad)
	b.Answer(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("X-Forwarded-For") == "" {
			return false // a probe
		}
		// it is done before the answer ends
		n := l.now.Add(1)
		defer l.now.Add(-1)
		for most := l.most.Load(); n > most && !l.most.CompareAndSwap(most, n); most = l.most.Load() {
		}
		gate := l.gate.Load()
		if r.URL.Path != "/held" || gate == nil {
			time.Sleep(200 * time.Microsecond)
			return false
		}
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
		l.held.Add(1)
		gate.Pass(r)
		l.held.Add(-1)
		_, _ = io.WriteString(w, b.Name)
		return true
	})
	return l
}

// wantLimit fails the test if an upstream had more requests at once than the limit, which was
// another one before, and those that a reload cut off.
func (c *chaos) wantLimit(what string, before, cutOff int) {
	c.t.Helper()
	for _, u := range c.all {
		if most := u.load.most.Swap(0); c.limit > 0 && before > 0 && most > int64(max(c.limit, before)+cutOff) {
			c.t.Errorf("%s: %s had %d requests at once, the limit is %d", what, u, most, max(c.limit, before))
		}
	}
}

// boundTo returns the upstream that a client is bound to, nil if it is to none.
func (c *chaos) boundTo(v *visitor) *chaotic {
	value := v.cookie(c.t, c.caddy.URL())
	for _, u := range c.all {
		if value == valueOf(chaosSecret, u.Addr) {
			return u
		}
	}
	return nil
}

// visit has a client ask while nothing else happens, and checks where that goes, and whether it
// binds the client.
func (c *chaos) visit(v *visitor, some []*chaotic, failsOpen bool) {
	c.t.Helper()
	bound := c.boundTo(v)
	got := testkit.Ask(v.client, c.caddy.URL())
	cookies := len(got.Header.Values("Set-Cookie"))
	switch {
	case !c.sticky:
		if cookies > 0 {
			c.t.Errorf("without sticky, answer %v sets %d cookies", got, cookies)
		}
	case bound != nil && (bound.keeps() || failsOpen && slices.Contains(some, bound)):
		if bound.answers() && got.Body != bound.Name || cookies > 0 {
			c.t.Errorf("bound to %s: answer %v with %d cookies, want one of its upstream without any", bound, got, cookies)
		}
	case got.Status == http.StatusOK:
		now, want := c.boundTo(v), 1
		if now == bound { // it has found no other
			want = 0
		}
		if now == nil || now.Name != got.Body || cookies != want || !slices.Contains(some, now) {
			c.t.Errorf("bound to %v: answer %v with %d cookies, bound to %v now, want a cookie of one that gets requests: %v", bound, got, cookies, now, some)
		}
	case cookies > 0 && !slices.ContainsFunc(some, func(u *chaotic) bool { return u.conduct == testkit.Shallow }): // whose errors are answers
		c.t.Errorf("bound to %v: answer %v with %d cookies, want none with an error of Caddy", bound, got, cookies)
	}
}

// chaosVisits are requests of bound clients while something happens.
type chaosVisits struct {
	c    *chaos
	stop context.CancelFunc
	done sync.WaitGroup
	seen map[*chaotic][]testkit.Answer // that were not as they have to be while the clients stay
}

// startVisits has the clients ask whose upstream keeps them.
func (c *chaos) startVisits() *chaosVisits {
	ctx, stop := context.WithCancel(context.Background())
	s := &chaosVisits{c: c, stop: stop, seen: make(map[*chaotic][]testkit.Answer)}
	c.t.Cleanup(s.wait)
	if !c.sticky {
		return s
	}
	var mu sync.Mutex // guards seen
	for _, v := range c.bound {
		u := c.boundTo(v)
		if u == nil || !u.keeps() || !u.answers() || u.isUnsteady() {
			continue
		}
		s.done.Go(func() {
			for ctx.Err() == nil {
				got := c.ask(v.client)
				if got.Body != u.Name || len(got.Header.Values("Set-Cookie")) > 0 {
					mu.Lock()
					s.seen[u] = append(s.seen[u], got)
					mu.Unlock()
				}
				time.Sleep(3 * time.Millisecond)
			}
		})
	}
	return s
}

func (s *chaosVisits) wait() {
	s.stop()
	s.done.Wait()
}

// end checks that the clients of upstreams that still keep them have been there only.
func (s *chaosVisits) end(what string) {
	s.c.t.Helper()
	s.wait()
	for u, seen := range s.seen {
		if s.c.sticky && u.keeps() && u.answers() && !u.isUnsteady() {
			s.c.t.Errorf("%s: clients of %s, which keeps them, got %d other answers, the first is %v with %q", what, u, len(seen), seen[0], seen[0].Header.Values("Set-Cookie"))
		}
	}
}

// mayFill reports whether all upstreams that serve can be made full.
func (c *chaos) mayFill() bool {
	some, failsOpen := c.gets()
	serving := c.those((*chaotic).serves)
	return c.limit > 0 && !c.unsure && !failsOpen && len(some) > 0 && some[0].serves() &&
		!slices.ContainsFunc(c.all, (*chaotic).isUnsteady) &&
		!slices.ContainsFunc(serving, func(u *chaotic) bool { return !u.answers() })
}

// fullPool is the pool while all upstreams that serve are full.
type fullPool struct {
	c       *chaos
	gate    *testkit.Gate
	held    chan testkit.Answer
	holds   int
	waiting sync.WaitGroup
	waited  []*chaosWait
}

// chaosWait is a request that waits in the queue.
type chaosWait struct {
	bound  *chaotic // nil for a client that is not bound, or moves
	answer testkit.Answer
}

// fill holds requests until no upstream that serves has room, and has further ones wait where
// there is a queue. Without one, these are answered 503 at once. The first groups are full
// before others get any.
func (c *chaos) fill() *fullPool {
	c.t.Helper()
	c.fills++
	f := &fullPool{c: c, gate: testkit.NewGate(c.t)}
	for _, u := range c.all {
		u.load.gate.Store(f.gate)
	}
	serving := c.those((*chaotic).serves)
	f.held = make(chan testkit.Answer, len(serving)*c.limit)
	client := c.caddy.Client()
	heldBy := func() (n int) {
		for _, u := range c.all {
			n += int(u.load.held.Load())
		}
		return n
	}
	full := 0
	for _, tier := range c.byGroup(c.joined, (*chaotic).serves) {
		for range len(tier) * c.limit {
			f.holds++
			go func() { f.held <- testkit.Ask(client, c.caddy.URL()+"/held") }()
			testkit.Eventually(c.t, testkit.Patience, "one more is held", func() bool { return heldBy() == f.holds })
		}
		full += len(tier) * c.limit
		for _, u := range tier {
			if n := int(u.load.held.Load()); n != c.limit {
				c.t.Errorf("%d requests are held, %d of them by %s, want %d", full, n, u, c.limit)
			}
		}
	}
	waiting := 0
	ask := func(client *http.Client, bound *chaotic) {
		w := &chaosWait{bound: bound}
		f.waited = append(f.waited, w)
		f.waiting.Go(func() { w.answer = c.ask(client) })
	}
	switch {
	case c.queues:
		for range 4 {
			ask(c.caddy.Client(), nil)
			waiting++
		}
	default:
		if got := testkit.Ask(client, c.caddy.URL()); got.Status != http.StatusServiceUnavailable || len(got.Header.Values("Set-Cookie")) > 0 {
			c.t.Errorf("all are full: answer %v, want 503", got)
		}
	}
	for _, v := range c.bound {
		if bound := c.boundTo(v); c.sticky && bound != nil && bound.keeps() && c.queues {
			ask(v.client, bound)
			if bound.serves() { // one that drains has room
				waiting++
			}
		}
	}
	if !testkit.Poll(testkit.Patience, func() bool { return c.waiting() == waiting || !c.queues }) {
		c.t.Errorf("all are full: %d requests wait, want %d", c.waiting(), waiting)
	}
	return f
}

// waiting returns how many requests are in the queue.
func (c *chaos) waiting() int { return int(c.caddy.Metrics()[`queue_length{pool="chaos"}`]) }

// end lets the requests go on that are held, and checks how all have ended.
func (f *fullPool) end(what string, fair bool) {
	c := f.c
	c.t.Helper()
	select {
	case <-f.gate.Opened:
	default:
		f.wantNoneWaitInVain(what)
	}
	f.gate.Open()
	refuses := slices.ContainsFunc(c.all, func(u *chaotic) bool { return u.conduct == testkit.Refusing })
	for range f.holds {
		if got := testkit.Wait(c.t, f.held, testkit.Patience); got.Status != http.StatusOK && !refuses {
			c.t.Errorf("%s: a request that was held: %v", what, got)
		}
	}
	f.waiting.Wait()
	for _, w := range f.waited {
		switch cookies := len(w.answer.Header.Values("Set-Cookie")); {
		case !fair:
		case w.answer.Status != http.StatusOK:
			c.t.Errorf("%s: a request that waited: %v", what, w.answer)
		case w.bound != nil && c.sticky && w.bound.keeps() && w.bound.answers() && (w.answer.Body != w.bound.Name || cookies > 0):
			c.t.Errorf("%s: a request that waited, bound to %s: %v with %d cookies", what, w.bound, w.answer, cookies)
		}
	}
}

// wantNoneWaitInVain fails the test if requests wait though an upstream has room for them. Those
// that are bound to one that is full wait for that.
func (f *fullPool) wantNoneWaitInVain(what string) {
	c := f.c
	c.t.Helper()
	some, _ := c.gets()
	room := func(u *chaotic) bool { return u.answers() && u.load.now.Load() < int64(c.limit) }
	may := 0
	for _, w := range f.waited {
		if w.bound != nil && w.bound.keeps() {
			may++
		}
	}
	if slices.ContainsFunc(some, room) && !testkit.Poll(testkit.Slack, func() bool { return c.waiting() <= may }) {
		c.t.Errorf("%s: %d requests wait, though an upstream has room: %v", what, c.waiting(), c.all)
	}
}
