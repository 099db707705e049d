// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"testing"
)

// Failures collects errors from any goroutine.
type Failures struct {
	mu   sync.Mutex
	errs []error
}

// Add adds one.
func (f *Failures) Add(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.errs = append(f.errs, err)
}

// Err joins the first few of them.
func (f *Failures) Err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := len(f.errs); n > 5 {
		return fmt.Errorf("%d errors, the first: %w", n, errors.Join(f.errs[:5]...))
	}
	return errors.Join(f.errs...)
}

// Traffic is a number of clients that ask without a pause.
type Traffic struct {
	Failures
	answers map[string]int // by body, guarded by mu
	Stop    func()         // ends them and waits
}

// StartTraffic runs it until it is stopped, at the end of the test at the
// latest. Each answer that is not 200 is a failure.
func StartTraffic(tb testing.TB, clients int, ask func() Answer) *Traffic {
	tb.Helper()
	f := &Traffic{answers: make(map[string]int)}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			for ctx.Err() == nil {
				a := ask()
				if a.Err != nil || a.Status != http.StatusOK {
					f.Add(errors.New(a.String()))
				}
				f.mu.Lock()
				f.answers[a.Body]++
				f.mu.Unlock()
			}
		})
	}
	f.Stop = func() {
		cancel()
		wg.Wait()
	}
	tb.Cleanup(f.Stop)
	return f
}

// Answered returns how many answers there were.
func (f *Traffic) Answered() (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, count := range f.answers {
		n += count
	}
	return n
}
