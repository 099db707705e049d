// SPDX-License-Identifier: Apache-2.0

package health

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// maxReason bounds the reason of a failed probe, in bytes: it may hold what a
// hostile upstream answered, and it is logged and kept.
const maxReason = 256

// outcome is what came of a probe, before it is known whether it counts.
type outcome struct {
	Result
	draining bool
	slow     bool   // it failed because something took too long
	shortage string // what this process lacks, if it failed for want of it
}

// ended returns when the probe ended.
func (o *outcome) ended() time.Time { return o.At.Add(o.Took) }

var (
	// errUnended is what came of a probe that goes on after its time.
	errUnended = errors.New("the probe did not end")
	// errStillRunning is what came of a probe that was not made.
	errStillRunning = errors.New("an earlier probe did not end at its timeout and is still running")
)

// outcome judges what a probe returned. The methods of its error are foreign code, too.
func (t *Target) outcome(a *attempt, draining bool, err error, now time.Time) (o outcome) {
	o = outcome{Result: Result{At: a.began, Took: now.Sub(a.began)}, draining: draining}
	if err == nil {
		return o
	}
	defer func() {
		if p := recover(); p != nil {
			o.Reason = t.reason(a, panicked(p))
		}
	}()
	o.slow = a.unasked || timedOut(a, err) || !now.Before(a.deadline)
	o.Reason = t.reason(a, err)
	o.shortage = shortage(err)
	return o
}

// timedOut reports whether a probe failed because something took too long.
func timedOut(ctx context.Context, err error) bool {
	timeout, ok := errors.AsType[interface {
		error
		Timeout() bool
	}](err)
	return ok && timeout.Timeout() || errors.Is(ctx.Err(), context.DeadlineExceeded)
}

// reason puts a failed probe into words that a person can act on, in one bounded line
// of valid text. What is not shown, or changes how the rest is shown (control
// characters, line separators, marks of direction, what has no width), becomes a
// question mark.
func (t *Target) reason(ctx context.Context, err error) string {
	text := cmp.Or(err.Error(), "an error without a text")
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		text = fmt.Sprintf("no verdict within %s: %s", t.settings.Timeout, text)
	}
	if len(text) > maxReason {
		text = strings.ToValidUTF8(text[:maxReason], "") + "…"
	}
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, text)
}

// safely turns a panic into a failed probe: a probe may be foreign code, fed with
// foreign bytes, and must not take the whole server down.
func safely(ctx context.Context, probe func(context.Context, bool) (bool, error), fresh bool) (draining bool, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = panicked(p)
		}
	}()
	return probe(ctx, fresh)
}

func panicked(p any) error { return fmt.Errorf("the probe panicked: %v", p) }
