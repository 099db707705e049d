// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/caddy-alive/caddy-alive/internal/health"
)

// While a handler blocks, maxEvents events wait and no more, with one warning. When it
// continues they are emitted in order, and so are later ones. The next time that it
// blocks there is another warning. A handler that blocks forever does not delay Emit.
func TestEvents_WaitWhileAHandlerBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.WarnLevel)
		gate := make(chan struct{})
		var got []string
		var all configs
		q := NewQueue(zap.New(core), func(name string, _ map[string]any) {
			<-gate
			got = append(got, name)
		}, all.running)
		ctx, stop := context.WithCancel(t.Context())
		context.AfterFunc(ctx, q.End)
		var running sync.WaitGroup
		running.Go(func() { q.Run(ctx) })

		var want []string
		emit := func(names ...string) {
			for _, name := range names {
				q.Emit(name, nil)
			}
			synctest.Wait()
		}
		many := func(prefix string, n int) (names []string) {
			for i := range n {
				names = append(names, fmt.Sprintf("%s%d", prefix, i))
			}
			return names
		}
		for outage, prefix := range []string{"a", "b"} {
			emit(prefix)
			emit(many(prefix, 2*maxEvents)...)
			if n := logs.Len(); n != outage+1 {
				t.Errorf("outage %d: %d warnings", outage, n)
			}
			want = append(append(want, prefix), many(prefix, maxEvents)...)
			close(gate)
			synctest.Wait()
			gate = make(chan struct{})
			if !slices.Equal(got, want) {
				t.Fatalf("outage %d: %d events went out, want %d", outage, len(got), len(want))
			}
		}
		emit("last")
		stop()
		emit("too late")
		close(gate)
		running.Wait()
		if want = append(want, "last"); !slices.Equal(got, want) {
			t.Errorf("%d events went out, want %d", len(got), len(want))
		}
	})
}

// An upstream that only begins to drain has not changed its status.
func TestEvents_DrainingIsNone(t *testing.T) {
	q := NewQueue(zap.NewNop(), nil, nil)
	q.StatusChanged("a:80", "http /", health.Transition{From: health.Up, To: health.Up})
	if e, ok := q.Next(); ok {
		t.Errorf("event %v", e)
	}
}

// Events that a config did not emit before its end are emitted by the next one, in
// order.
func TestEvents_GoToTheNextConfig(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var all configs
		var got []string
		gate := make(chan struct{})
		old := all.start(t, &got, true, gate)
		for i := range 3 {
			old.Emit(fmt.Sprint(i), nil)
		}
		synctest.Wait()
		next := all.start(t, &got, true, nil)
		old.cancel()
		synctest.Wait()
		old.Emit("3", nil) // of a probe that was in flight
		synctest.Wait()
		next.leave()
		if want := []string{"1", "2", "3"}; !slices.Equal(got, want) {
			t.Errorf("emitted %v while a handler blocks, want %v", got, want)
		}
		close(gate)
	})
}
