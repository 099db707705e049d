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

// maxReason bounds the reason of a failed probe, in bytes. It may hold what a
// hostile upstream answered, and it is logged and kept.
const maxReason = 256

var (
	// errUnended is the error of a probe that goes on after its time.
	errUnended = errors.New("the probe did not end")
	// errStillRunning is the error of a probe that was not made.
	errStillRunning = errors.New("an earlier probe did not end at its timeout and is still running")
)

// outcome is the result of a probe before it is known whether it counts.
type outcome struct {
	Result
	draining bool
	slow     bool   // it failed because something took too long
	shortage string // what this process lacks, if the probe failed because of that
}

// newOutcome judges what a probe returned. The methods of err are third-party code, too.
func newOutcome(a *attempt, draining bool, err error, now time.Time) (o outcome) {
	o = outcome{Result: Result{At: a.began, Took: now.Sub(a.began)}, draining: draining}
	if err == nil {
		return o
	}
	defer func() {
		if p := recover(); p != nil {
			o.Reason = a.reason(panicError(p))
		}
	}()
	o.slow = a.skipped || timedOut(a.ctx, err) || !now.Before(a.heartbeat.deadline)
	o.Reason = a.reason(err)
	o.shortage = Shortage(err)
	return o
}

// ended returns when the probe ended.
func (o *outcome) ended() time.Time { return o.At.Add(o.Took) }

// timedOut reports whether a probe failed because something took too long.
func timedOut(ctx context.Context, err error) bool {
	timeout, ok := errors.AsType[interface {
		error
		Timeout() bool
	}](err)
	return ok && timeout.Timeout() || errors.Is(ctx.Err(), context.DeadlineExceeded)
}

// reason describes a failed probe in one line.
func (a *attempt) reason(err error) string {
	text := cmp.Or(err.Error(), "an error without a text")
	if errors.Is(a.ctx.Err(), context.DeadlineExceeded) {
		text = fmt.Sprintf("no verdict within %s: %s", a.heartbeat.deadline.Sub(a.began), text)
	}
	return OneLine(text)
}

// OneLine returns a text of foreign origin as one bounded line of valid text. Runes that are
// not printable (control characters, line separators, marks of direction, characters
// without width) become a question mark.
func OneLine(text string) string {
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
