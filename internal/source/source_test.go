// SPDX-License-Identifier: Apache-2.0

package source

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// eachWay runs a test in virtual time for both ways in which a source is asked.
func eachWay(t *testing.T, test func(t *testing.T, background bool)) {
	t.Helper()
	for _, background := range []bool{inBackground, onRequest} {
		name := map[bool]string{inBackground: "in the background", onRequest: "by requests"}[background]
		t.Run(name, func(t *testing.T) {
			testkit.Bubble(t, func(t *testing.T) { test(t, background) })
		})
	}
}

// While a source fails, requests get its last answer at once, as upstreams that no other
// request has. There is one line at the beginning and one at the end.
func TestSource_FailureUsesTheLastAnswer(t *testing.T) {
	eachWay(t, func(t *testing.T, background bool) {
		from := &inner{dials: []string{"a:80", "b:80"}}
		s := open(t, from, background, time.Hour)
		defer s.close()
		s.wants("all is well", "a:80 b:80", 0)
		time.Sleep(refreshed)
		s.wants("all is still well", "a:80 b:80", 0)
		from.set(0, errDown)
		time.Sleep(refreshed)
		for range 100 {
			s.wants("it fails", "a:80 b:80", 0)
			time.Sleep(10 * time.Millisecond)
		}
		s.logged("warn: the dynamic source fails; its last answer is used age=10s error=the source is down")
		before, _ := s.GetUpstreams(request(context.Background()))
		after, _ := s.GetUpstreams(request(context.Background()))
		for i := range before {
			if before[i] == after[i] {
				t.Error("two requests got the same upstream, want a new one for each")
			}
		}
		synctest.Wait()
		from.set(0, nil, "c:80")
		time.Sleep(longestWait)
		s.wants("the request that has it asked again", "a:80 b:80", 0)
		synctest.Wait()
		s.wants("it answers again", "c:80", 0)
		s.logged("info: the dynamic source answers again failed_for=31s")
	})
}

// A resolver that fails for ten minutes costs nothing: it is asked a few times in the
// background, and of 30,000 requests with as many retries, only those wait that come
// before it is known to fail, and for a moment. The same is true if it never answered.
func TestSource_TenMinutesOfFailureCostNothing(t *testing.T) {
	for _, tc := range []struct {
		how   string
		takes time.Duration
		err   error
		calls int // at most
	}{
		{"fails at once", 0, errDown, 26},
		{"times out after 5 s", 5 * time.Second, errDown, 24},
		{"never answers", time.Hour, nil, 14},
	} {
		t.Run(tc.how, func(t *testing.T) {
			testkit.Bubble(t, func(t *testing.T) {
				from := &inner{dials: []string{"a:80"}}
				s := open(t, cached{from}, inBackground, time.Hour)
				defer s.close()
				s.wants("all is well", "a:80", 0)
				time.Sleep(refreshed)
				before, _ := from.asked()
				from.set(tc.takes, tc.err)
				waiting := 0
				for range 30_000 {
					for range 2 { // the request, and a retry
						got, waited := s.get()
						if got != "a:80" || waited > patience {
							t.Fatalf("got %q after %s, want a:80 within %s", got, waited, patience)
						}
						if waited > 0 {
							waiting++
						}
						if err := s.ResetCache(request(context.Background())); err != nil {
							t.Fatal(err)
						}
					}
					time.Sleep(20 * time.Millisecond)
				}
				calls, resets := from.asked()
				if calls -= before; calls > tc.calls || calls < tc.calls/2 {
					t.Errorf("asked %d times in ten minutes, want %d at most, and half of that at least", calls, tc.calls)
				}
				if waiting > 1 || resets > 1 {
					t.Errorf("%d requests waited and %d caches were reset, want one at most", waiting, resets)
				}
			})
		})
	}
}

// The time between two calls doubles, up to the longest one.
func TestSource_WaitDoubles(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		from := &inner{dials: []string{"a:80"}}
		s := open(t, from, inBackground, time.Hour)
		defer s.close()
		s.wants("all is well", "a:80", 0)
		from.set(0, errDown)
		time.Sleep(refreshed)
		begin := time.Now()
		var at []time.Duration
		before, _ := from.asked()
		for time.Since(begin) < 2*time.Minute {
			s.wants("it fails", "a:80", 0)
			synctest.Wait()
			if calls, _ := from.asked(); calls > before {
				before, at = calls, append(at, time.Since(begin)/time.Second)
			}
			time.Sleep(100 * time.Millisecond)
		}
		if want := []time.Duration{0, 1, 3, 7, 15, 31, 61, 91}; !slices.Equal(at, want) {
			t.Errorf("asked after %d seconds, want %d", at, want)
		}
	})
}

// Requests that ask by themselves and fail at the same time are one failure: the source is
// asked again after the first wait.
func TestSource_ManyFailingRequestsAreOneFailure(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		from := &inner{dials: []string{"a:80"}}
		s := open(t, from, onRequest, time.Hour)
		defer s.close()
		s.wants("all is well", "a:80", 0)
		from.set(time.Second, errDown)
		var all sync.WaitGroup
		for range 50 {
			all.Go(func() { s.wants("it fails", "a:80", time.Second) })
		}
		all.Wait()
		if got := s.lines(); len(got) != 1 {
			t.Errorf("logged %q, want one line", got)
		}
		from.set(0, nil, "b:80")
		time.Sleep(firstWait)
		_, _ = s.get()
		synctest.Wait()
		s.wants("it answers again", "b:80", 0)
	})
}

// As long as there is no answer to go on with, requests get the error at once, and the
// source is asked each second, so that they are served as soon as it answers.
func TestSource_WithoutAnAnswerTheErrorComesAtOnce(t *testing.T) {
	eachWay(t, func(t *testing.T, background bool) {
		from := &inner{takes: 5 * time.Second, err: errDown}
		s := open(t, from, background, time.Hour)
		defer s.close()
		s.wants("the first request", errDown.Error(), 5*time.Second)
		for range 600 {
			s.wants("it fails", errDown.Error(), 0)
			time.Sleep(time.Second)
		}
		if calls, _ := from.asked(); calls < 90 || calls > 101 {
			t.Errorf("asked %d times in ten minutes, want a second between two calls of five", calls)
		}
		s.logged("warn: the dynamic source fails; it has not answered before, so the upstreams in the list of the handler are used error=the source is down")
		from.set(0, nil, "a:80")
		time.Sleep(5 * time.Second)
		_, _ = s.get()
		synctest.Wait()
		s.wants("it answers", "a:80", 0)
		if got := s.lines(); len(got) != 1 {
			t.Errorf("logged %q, want one line", got)
		}
	})
}

// After the time of stale, requests get the error again, so that Caddy falls back. That
// is said once.
func TestSource_OldAnswerIsNotUsed(t *testing.T) {
	eachWay(t, func(t *testing.T, background bool) {
		from := &inner{dials: []string{"a:80"}}
		s := open(t, from, background, time.Minute)
		defer s.close()
		s.wants("all is well", "a:80", 0)
		from.set(0, errDown)
		time.Sleep(refreshed)
		for at := refreshed; at < time.Minute; at += time.Second {
			s.wants(fmt.Sprintf("the answer is %s old", at), "a:80", 0)
			time.Sleep(time.Second)
		}
		s.logged("warn: the dynamic source fails; its last answer is used age=10s error=the source is down")
		for range 100 {
			s.wants("it is too old", errDown.Error(), 0)
			time.Sleep(100 * time.Millisecond)
		}
		s.logged("warn: the dynamic source fails; its last answer is too old, so the upstreams in the list of the handler are used age=1m0s error=the source is down")
		before, _ := from.asked()
		from.set(0, nil, "b:80")
		time.Sleep(time.Second + time.Millisecond)
		_, _ = s.get()
		synctest.Wait()
		s.wants("it answers again", "b:80", 0)
		if after, _ := from.asked(); after > before+2 {
			t.Errorf("asked %d times more, want two times at most", after-before)
		}
		s.lines()
		from.set(0, errDown)
		time.Sleep(time.Minute)
		s.wants("it fails again", errDown.Error(), 0)
		if got := s.lines(); len(got) != 1 {
			t.Errorf("logged %q when it fails again, want one line", got)
		}
	})
}

// An answer that is too old after hours without requests is not used, not even while the
// source takes its time.
func TestSource_IdleHandlerWaitsForANewAnswer(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		from := &inner{dials: []string{"a:80"}}
		s := open(t, from, inBackground, time.Hour)
		defer s.close()
		s.wants("all is well", "a:80", 0)
		time.Sleep(2 * time.Hour)
		from.set(3*time.Second, nil, "b:80")
		s.wants("two hours later", "b:80", 3*time.Second)
		s.logged()
	})
}

// A name that does not exist is an answer: it is obeyed, also while the source fails after
// it, and looked up each second at most.
func TestSource_MissingNameIsObeyed(t *testing.T) {
	eachWay(t, func(t *testing.T, background bool) {
		from := &inner{dials: []string{"a:80"}}
		s := open(t, from, background, time.Hour)
		defer s.close()
		s.wants("all is well", "a:80", 0)
		time.Sleep(refreshed)
		from.set(0, errMissing)
		s.wants("there is no such name", errMissing.Error(), 0)
		before, _ := from.asked()
		for range 1000 {
			s.wants("there is still no such name", errMissing.Error(), 0)
			time.Sleep(10 * time.Millisecond)
		}
		if after, _ := from.asked(); background && after > before+10 {
			t.Errorf("asked %d times in ten seconds, want 10 at most", after-before)
		}
		from.set(0, nil, "c:80")
		time.Sleep(missingInterval)
		s.wants("the name is back", "c:80", 0)
		time.Sleep(refreshed)
		from.set(0, errMissing)
		s.wants("it is gone again", errMissing.Error(), 0)
		from.set(0, errDown)
		time.Sleep(missingInterval)
		s.wants("it fails", errMissing.Error(), 0)
		from.set(0, nil, "b:80")
		time.Sleep(firstWait)
		_, _ = s.get()
		synctest.Wait()
		s.wants("the name is back after the failure", "b:80", 0)
	})
}

// An answer without upstreams is obeyed.
func TestSource_EmptyAnswerIsObeyed(t *testing.T) {
	eachWay(t, func(t *testing.T, background bool) {
		from := &inner{dials: []string{"a:80"}}
		s := open(t, from, background, time.Hour)
		defer s.close()
		s.wants("all is well", "a:80", 0)
		time.Sleep(refreshed)
		from.set(0, nil)
		s.wants("it is empty", "", 0)
		from.set(0, errDown)
		time.Sleep(refreshed)
		s.wants("it fails after that", "", 0)
	})
}

// What says that there is no such name, and what does not: a source that cannot find a
// server of its own fails.
func TestIsMissing_OnlyOfTheNameItself(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		err  error
		want bool
	}{
		{nil, false},
		{errMissing, true},
		{fmt.Errorf("looking up: %w", errMissing), true},
		{&net.OpError{Op: "dial", Net: "tcp", Err: errMissing}, false},
		{&net.DNSError{Err: "server misbehaving", IsTemporary: true}, false},
		{&net.DNSError{Err: "i/o timeout", IsTimeout: true}, false},
		{errDown, false},
	} {
		if got := isMissing(tc.err); got != tc.want {
			t.Errorf("%v: got %v, want %v", tc.err, got, tc.want)
		}
	}
}

// A client that leaves says nothing of the source.
func TestSource_ClientThatLeavesIsNoFailure(t *testing.T) {
	eachWay(t, func(t *testing.T, background bool) {
		from := &inner{takes: time.Second, dials: []string{"a:80"}}
		s := open(t, from, background, time.Hour)
		defer s.close()
		ctx, leave := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer leave()
		if _, err := s.GetUpstreams(request(ctx)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a client that leaves: got %v, want the error of its context", err)
		}
		if f := s.memory.failure.Load(); f != nil {
			t.Errorf("the source is known to fail: %v", f.err)
		}
		s.wants("the next one", "a:80", time.Second)
		s.logged()
	})
}

// While a source is slow, only requests within a short moment wait for it, and it is asked
// once. The next ones have its new answer.
func TestSource_SlowAnswerHoldsNoRequest(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		from := &inner{dials: []string{"a:80"}}
		s := open(t, from, inBackground, time.Hour)
		defer s.close()
		s.wants("all is well", "a:80", 0)
		from.set(3*time.Second, nil, "b:80")
		time.Sleep(refreshed)
		before, _ := from.asked()
		for at := time.Duration(0); at < 3*time.Second; {
			got, waited := s.get()
			if want := max(0, patience-at); got != "a:80" || waited > want {
				t.Errorf("after %s: got %q after %s, want a:80 within %s", at, got, waited, want)
			}
			at += waited + 100*time.Millisecond
			time.Sleep(100 * time.Millisecond)
		}
		s.wants("afterwards", "b:80", 0)
		if after, _ := from.asked(); after != before+1 {
			t.Errorf("asked %d times, want once", after-before)
		}
		from.set(patience/2, nil, "c:80")
		time.Sleep(refreshed)
		s.wants("it is quick enough", "c:80", patience/2)
	})
}

// A thousand requests at a cold start wait for one look-up.
func TestSource_ColdStartAsksOnce(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		from := &inner{takes: 2 * time.Second, dials: []string{"a:80"}}
		s := open(t, from, inBackground, time.Hour)
		defer s.close()
		var all sync.WaitGroup
		for range 1000 {
			all.Go(func() { s.wants("a cold start", "a:80", 2*time.Second) })
		}
		all.Wait()
		if calls, _ := from.asked(); calls != 1 {
			t.Errorf("asked %d times, want once", calls)
		}
	})
}

// A retry gets a new answer from a source with a cache, but no more than once a second,
// and as Caddy does it from a source without one.
func TestSource_RetryAsksAgain(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		from := &inner{dials: []string{"a:80"}}
		s := open(t, cached{from}, inBackground, time.Hour)
		defer s.close()
		s.wants("all is well", "a:80", 0)
		from.set(0, nil, "b:80")
		time.Sleep(resetInterval)
		for range 100 {
			if err := s.ResetCache(request(context.Background())); err != nil {
				t.Fatal(err)
			}
			s.wants("a retry", "b:80", 0)
		}
		if calls, resets := from.asked(); calls != 2 || resets != 1 {
			t.Errorf("asked %d times with %d resets, want twice with one", calls, resets)
		}
	})
	testkit.Bubble(t, func(t *testing.T) {
		from := &inner{dials: []string{"a:80"}}
		s := open(t, from, inBackground, time.Hour)
		defer s.close()
		s.wants("all is well", "a:80", 0)
		time.Sleep(resetInterval)
		if err := s.ResetCache(request(context.Background())); err != nil {
			t.Fatal(err)
		}
		s.wants("a retry over a source without a cache", "a:80", 0)
		if calls, _ := from.asked(); calls != 1 {
			t.Errorf("asked %d times, want once", calls)
		}
	})
	testkit.Bubble(t, func(t *testing.T) {
		from := &inner{dials: []string{"a:80"}}
		s := open(t, cached{from}, onRequest, time.Hour)
		defer s.close()
		s.wants("all is well", "a:80", 0)
		reset := func(want int) {
			t.Helper()
			if err := s.ResetCache(request(context.Background())); err != nil {
				t.Fatal(err)
			}
			if _, resets := from.asked(); resets != want {
				t.Errorf("got %d resets, want %d", resets, want)
			}
		}
		reset(1)
		from.set(0, errDown)
		s.wants("it fails", "a:80", 0)
		reset(1)
	})
}

// A source that does not heed its context fails after a time, so that requests do not
// wait, and is not asked again before it has ended. If it answers then, it is well.
func TestSource_HungSourceFails(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		from := &inner{takes: 2 * longestCall, dials: []string{"a:80"}, deaf: true}
		s := open(t, from, inBackground, time.Hour)
		defer s.close()
		s.wants("the first request", errTooLong.Error(), longestCall)
		for range 29 {
			time.Sleep(time.Second)
			s.wants("it hangs", errTooLong.Error(), 0)
		}
		if calls, _ := from.asked(); calls != 1 {
			t.Errorf("asked %d times, want once", calls)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		s.wants("it has answered", "a:80", 0)
		if got := s.lines(); len(got) != 2 {
			t.Errorf("logged %q, want a failure and its end", got)
		}
	})
}

// A source that panics in the background fails. Caddy goes on.
func TestSource_PanicIsAFailure(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		from := &inner{panics: true}
		s := open(t, from, inBackground, time.Hour)
		defer s.close()
		s.wants("it panics", "the source panicked: a bug", 0)
	})
}

// Close ends a look-up, and waits for it, but not for long if the source does not heed its
// context.
func TestSource_CloseEndsTheLookUp(t *testing.T) {
	for _, deaf := range []bool{false, true} {
		t.Run(fmt.Sprintf("deaf %v", deaf), func(t *testing.T) {
			testkit.Bubble(t, func(t *testing.T) {
				from := &inner{dials: []string{"a:80"}}
				s := open(t, from, inBackground, time.Hour)
				s.wants("all is well", "a:80", 0)
				from.set(time.Minute, nil, "b:80")
				from.deaf = deaf
				time.Sleep(refreshed)
				s.wants("it is slow", "a:80", patience)
				begin, want := time.Now(), time.Duration(0)
				if deaf {
					want = closeWait
				}
				s.close()
				if took := time.Since(begin); took != want {
					t.Errorf("Close took %s, want %s", took, want)
				}
				s.wants("a request in flight", "a:80", 0)
				s.logged()
				time.Sleep(time.Minute) // until the source itself has ended
			})
		})
	}
}

// A request that is in flight at the end of its config, and has no answer, asks by itself.
func TestSource_RequestOutlivesTheConfig(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		from := &inner{takes: time.Second, dials: []string{"a:80"}}
		s := open(t, from, inBackground, time.Hour)
		done := make(chan struct{})
		go func() {
			defer close(done)
			s.wants("it waits as the config ends", "a:80", 1500*time.Millisecond)
		}()
		time.Sleep(500 * time.Millisecond)
		s.close()
		<-done
		s.logged()
	})
}

// A reload keeps the last answer, and that the source fails: it is not asked again before
// its time, nothing is logged twice, and the new time of stale applies. A look-up that
// ends with the old config says nothing of the source.
func TestSource_ReloadKeepsWhatIsKnown(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		from := &inner{dials: []string{"a:80"}}
		s := open(t, from, inBackground, time.Hour)
		s.wants("all is well", "a:80", 0)
		from.set(0, errDown)
		time.Sleep(refreshed)
		s.wants("it fails", "a:80", 0)
		for range 20 {
			time.Sleep(5 * time.Second)
			s.wants("it fails", "a:80", 0)
		}
		from.set(10*time.Second, errDown)
		time.Sleep(longestWait)
		s.wants("it is slow to fail", "a:80", 0)
		synctest.Wait()
		before, _ := from.asked()

		next := open(t, from, inBackground, 10*time.Minute)
		s.close()
		next.wants("after a reload", "a:80", 0)
		synctest.Wait()
		if calls, _ := from.asked(); calls != before+1 {
			t.Errorf("asked %d times, want once in place of the call that ended", calls-before)
		}
		time.Sleep(10 * time.Second)
		for range 28 {
			next.wants("it fails on", "a:80", 0)
			time.Sleep(time.Second)
		}
		if calls, _ := from.asked(); calls != before+1 {
			t.Errorf("asked %d times, want the wait of %s to go on", calls-before, longestWait)
		}
		next.logged()
		time.Sleep(10 * time.Minute)
		next.wants("after the new time of stale", errDown.Error(), 0)
		next.close()
	})
}

// Handlers with the same source share what is known of it.
func TestSource_HandlersShareTheirSource(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		from := &inner{dials: []string{"a:80"}}
		one, other := open(t, from, inBackground, time.Hour), open(t, from, inBackground, time.Minute)
		defer one.close()
		defer other.close()
		one.wants("one", "a:80", 0)
		other.wants("other", "a:80", 0)
		from.set(0, errDown)
		for range 61 {
			time.Sleep(time.Second)
			_, _ = one.get()
			_, _ = other.get()
		}
		one.wants("one after a minute", "a:80", 0)
		other.wants("other after a minute", errDown.Error(), 0)
		if got := len(one.lines()) + len(other.lines()); got != 2 {
			t.Errorf("%d lines, want one of the failure and one of the answer that is too old", got)
		}
	})
}

// Requests, retries and reloads at the same time, over a source that comes and goes: every
// request gets an answer or its error.
func TestSource_ManyAtOnce(t *testing.T) {
	for _, background := range []bool{inBackground, onRequest} {
		from := &inner{dials: []string{"a:80"}}
		around := reverseproxy.UpstreamSource(cached{from})
		first := open(t, around, background, time.Hour)
		first.refresh = time.Microsecond
		var now atomic.Pointer[Source]
		now.Store(first.Source)
		stop := make(chan struct{})
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					s := now.Load()
					upstreams, err := s.GetUpstreams(request(context.Background()))
					if err != nil && !errors.Is(err, errDown) || err == nil && len(upstreams) != 1 {
						t.Errorf("got %v, %v", upstreams, err)
					}
					_ = s.ResetCache(nil)
				}
			})
		}
		for i := range 60 {
			switch i % 4 {
			case 0:
				from.set(time.Millisecond, errDown)
			case 2:
				from.set(0, nil, []string{"a:80", "b:80"}[i/4%2])
			}
			time.Sleep(time.Millisecond)
			next := open(t, around, background, time.Hour)
			next.refresh = time.Microsecond
			if err := now.Swap(next.Source).Close(); err != nil {
				t.Error(err)
			}
		}
		close(stop)
		all.Wait()
		if err := now.Load().Close(); err != nil {
			t.Error(err)
		}
	}
	testkit.WantNothingShared(t)
}
