// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// lateHang makes the process late by that much during a probe that times out.
func lateHang(target *Target, by time.Duration) func(ctx context.Context) error {
	return func(ctx context.Context) error {
		target.mu.Lock()
		target.schedule.attempt.heartbeat.late = by
		target.mu.Unlock()
		return hang(ctx)
	}
}

// A busy process does not hide a dead target: after as many inconclusive timeouts in a
// row as it takes fails, timeouts count, until a result comes that lateness does not
// explain.
func TestLateness_IsBounded(t *testing.T) {
	const late = 600 * time.Millisecond
	for _, tc := range []struct {
		rule         string
		results      string // P: passes, F: refused, T: times out on time, L: times out late
		inconclusive string // a v for each of them
		want         Status
	}{
		{"late all the time", "PLLLLLL", ".vvv...", Down},
		{"one less", "PLLLLL", ".vvv..", Up},
		{"a pass begins anew", "PLLLLPLLLL", ".vvv..vvv.", Up},
		{"so does a refusal", "PLLFLLLL", ".vv.vvv.", Up},
		{"and a timeout on time", "PLLLTLLLL", ".vvv.vvv.", Up},
		{"the streak goes on over inconclusive results", "PFLFLF", "..v.v.", Down},
		{"with no verdict yet", "LLLL", "vvv.", Down},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				target := NewTarget(settings())
				s := newScript(nil)
				d := s.driver()
				var got []byte
				d.Probed = func(Result) { got = append(got, '.') }
				d.Inconclusive = func(*InconclusiveError) { got = append(got, 'v') }
				defer attachByHand(target, d)()
				for _, r := range tc.results {
					s.set(map[rune]func(context.Context) error{'P': pass, 'F': fail, 'T': hang, 'L': lateHang(target, late)}[r])
					target.probeByHand()
				}
				if string(got) != tc.inconclusive {
					t.Errorf("%s: got %s, want %s", tc.results, got, tc.inconclusive)
				}
				if got := target.Status(); got != tc.want {
					t.Errorf("%s: status %v, want %v", tc.results, got, tc.want)
				}
				passed := strings.Count(tc.inconclusive, ".")
				if v := target.View(); len(v.Recent) != passed {
					t.Errorf("%d results remembered, want %d: inconclusive ones are none", len(v.Recent), passed)
				}
			})
		})
	}
}

// Small delays are usual on any machine: up to 20 ms make no result inconclusive, however
// short the timeout.
func TestLateness_HasANoiseFloor(t *testing.T) {
	for _, tc := range []struct {
		timeout, late time.Duration
		inconclusive  bool
	}{
		{40 * time.Millisecond, 20 * time.Millisecond, false},
		{40 * time.Millisecond, 21 * time.Millisecond, true},
		{time.Second, 249 * time.Millisecond, false},
		{time.Second, 251 * time.Millisecond, true},
	} {
		synctest.Test(t, func(t *testing.T) {
			set := settings()
			set.Timeout = tc.timeout
			target := NewTarget(set)
			inconclusive := false
			d := newScript(lateHang(target, tc.late)).driver()
			d.Inconclusive = func(*InconclusiveError) { inconclusive = true }
			defer attachByHand(target, d)()
			target.probeByHand()
			if inconclusive != tc.inconclusive {
				t.Errorf("timeout %v, late by %v: inconclusive %v, want %v", tc.timeout, tc.late, inconclusive, tc.inconclusive)
			}
		})
	}
}

// dialError is the error of a failed dial.
func dialError(call string, errno syscall.Errno) error {
	return &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError(call, errno)}
}

func TestShortage_IsFoundInAnyWrapping(t *testing.T) {
	for _, errno := range shortages {
		for _, err := range []error{
			errno,
			dialError("socket", errno),
			&url.Error{Op: "Get", URL: "http://app/", Err: dialError("connect", errno)},
			fmt.Errorf("connecting: %w", dialError("bind", errno)),
			&fs.PathError{Op: "open", Path: os.DevNull, Err: errno},
			errors.Join(errSick, dialError("connect", errno)),
			&net.DNSError{Name: "app", Err: dialError("socket", errno).Error()},
			&net.OpError{Op: "dial", Net: "tcp", Err: &net.DNSError{Name: "app", Err: errno.Error()}},
		} {
			if got := Shortage(err); got != errno.Error() {
				t.Errorf("%v: got %q, want %q", err, got, errno.Error())
			}
		}
	}
}

func TestShortage_IsNoFailureOfTheOtherSide(t *testing.T) {
	for _, err := range []error{
		errSick,
		context.DeadlineExceeded,
		errors.New("too many open files"), // what the other side answered
		dialError("connect", syscall.ECONNREFUSED),
		dialError("connect", syscall.ETIMEDOUT),
		dialError("connect", syscall.EAGAIN), // the queue of a unix socket is full
		&fs.PathError{Op: "open", Path: "/x", Err: syscall.EAGAIN},
		&fs.PathError{Op: "fork/exec", Path: "/x", Err: syscall.ENOENT},
		&net.DNSError{Name: "app", Err: "no such host", IsNotFound: true},
		&net.DNSError{Name: "app", Err: "server misbehaving"},
	} {
		if got := Shortage(err); got != "" {
			t.Errorf("%v: got %q, want none", err, got)
		}
	}
	if got := Shortage(&fs.PathError{Op: "fork/exec", Path: "/x", Err: syscall.EAGAIN}); got == "" {
		t.Error("a process that cannot be started is a shortage")
	}
}

// Results are inconclusive as long as a shortage lasts: status, streak and history stay,
// and so is the result of Check.
func TestShortage_IsInconclusiveAsLongAsItLasts(t *testing.T) {
	short := func(context.Context) error { return fmt.Errorf("dial: %w", dialError("socket", shortages[0])) }
	for _, tc := range []struct {
		rule   string
		before []func(context.Context) error
		want   Status
	}{
		{"unknown", nil, Unknown},
		{"up", []func(context.Context) error{pass}, Up},
		{"up, in a streak", []func(context.Context) error{pass, fail, fail}, Up},
		{"down", []func(context.Context) error{fail}, Down},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				target := NewTarget(settings())
				s := newScript(short)
				d := s.driver()
				inconclusive := 0
				d.Inconclusive = func(why *InconclusiveError) {
					if inconclusive++; why.Shortage != shortages[0].Error() || !strings.Contains(why.Reason, why.Shortage) || why.Late != 0 {
						t.Errorf("result %+v", why)
					}
				}
				defer attachByHand(target, d)()
				for _, answer := range tc.before {
					s.set(answer)
					target.probeByHand()
				}
				before := target.View()
				s.set(short)
				for range 100 {
					target.probeByHand()
				}
				after := target.View()
				if after.Status != tc.want || after.Fails != before.Fails || after.Passes != before.Passes || after.Last != before.Last || !slices.Equal(after.Recent, before.Recent) {
					t.Errorf("it went from %+v to %+v, want no change", before, after)
				}
				if inconclusive != 100 {
					t.Errorf("reported %d times, want for each of 100 probes", inconclusive)
				}
				result, err := target.Check(t.Context())
				why, ok := errors.AsType[*InconclusiveError](err)
				if !ok || why.Shortage == "" || result.Passed() {
					t.Errorf("a check got %+v, %v", result, err)
				}
			})
		})
	}
}
