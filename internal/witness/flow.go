// SPDX-License-Identifier: Apache-2.0

package witness

import (
	"math"
	"sync/atomic"
	"time"
)

const (
	// minStall and maxStall bound the time that follows from the pace of an upstream.
	minStall = 500 * time.Millisecond
	maxStall = 10 * time.Second
	// stallGaps is how many times the usual gap between first bytes is a stall.
	stallGaps = 8
	// gapWeight is the share of one first byte in a gap that shrinks.
	gapWeight = 1.0 / 16
)

// flow counts the requests that wait for an upstream, and the first bytes of its answers,
// in one word: a request costs one addition when it begins to wait and one when it ends.
type flow struct {
	word atomic.Uint64
	left atomic.Uint64 // requests that ended without a first byte
	// earlier is how many requests had begun to wait when the epoch began.
	earlier atomic.Uint64
	pace    pace
}

// oneWaiting is one request that waits. Below it are the first bytes, which never get there.
const oneWaiting = 1 << 44

// wait adds a request that waits, and returns the first bytes that came before.
func (f *flow) wait() (firsts uint64) { return f.word.Add(oneWaiting) % oneWaiting }

// leave ends the wait of a request without a first byte.
func (f *flow) leave() {
	f.word.Add(^uint64(oneWaiting - 1))
	f.left.Add(1)
}

// answered counts a first byte, of a request that waited or did not.
func (f *flow) answered(waited bool) {
	if waited {
		f.word.Add(^uint64(oneWaiting-1) + 1)
	} else {
		f.word.Add(1)
	}
}

func (f *flow) firsts() uint64 { return f.word.Load() % oneWaiting }

func (f *flow) isWaiting() bool { return f.word.Load() >= oneWaiting }

// begun returns how many requests have begun to wait.
func (f *flow) begun() uint64 {
	word := f.word.Load()
	return word%oneWaiting + f.left.Load() + word/oneWaiting
}

// newEpoch says that the requests which have begun say nothing any more.
func (f *flow) newEpoch() { f.earlier.Store(f.begun()) }

// stall returns how long requests may wait without a first byte.
func (f *flow) stall(set *Settings) time.Duration {
	if set.Stall > 0 {
		return set.Stall
	}
	return min(max(stallGaps*time.Duration(f.pace.gap.Load()), minStall), maxStall)
}

// pace is what samples of a flow tell. Only the sampler of the pool writes to it.
type pace struct {
	gap   atomic.Int64 // the smoothed time between first bytes while requests wait
	last  uint64       // first bytes at the last sample
	epoch uint64       // at the last sample
	at    time.Time    // when that was
	// since is from when requests wait without a first byte, the zero time while none wait.
	since time.Time
}

// sample looks at a flow, and reports whether it stalls. Late says that the sampler was
// late by a time, which says nothing.
func (f *flow) sample(now time.Time, epoch uint64, late time.Duration, set *Settings) (stalls bool) {
	p := &f.pace
	word := f.word.Load()
	firsts := word % oneWaiting
	waiting := word >= oneWaiting && f.begun() > f.earlier.Load() // of this epoch
	came, before := firsts-p.last, p.at
	p.at = now
	if p.epoch != epoch { // requests of an earlier one say nothing
		p.epoch, p.since = epoch, time.Time{}
	}
	if !p.since.IsZero() {
		p.since = p.since.Add(late)
	}
	switch {
	case came > 0 && !p.since.IsZero():
		until, gaps := now, came
		switch {
		case !waiting: // the last one may have come soon after the last sample
			until = before.Add(late)
		case p.since.Equal(before.Add(late)): // the answers may have ended soon after that
			gaps++
		}
		p.adapt(until.Sub(p.since)/time.Duration(gaps), came)
		fallthrough
	case came > 0 || !waiting || p.since.IsZero():
		p.last, p.since = firsts, time.Time{}
		if waiting {
			p.since = now
		}
	case now.Sub(p.since) >= f.stall(set):
		p.since = now // and once more after another stall
		return true
	}
	return false
}

// adapt takes the mean of some gaps: at once if it is longer, little by little if it is
// shorter.
func (p *pace) adapt(gap time.Duration, n uint64) {
	known := float64(p.gap.Load())
	if shorter := float64(gap) - known; shorter < 0 {
		p.gap.Store(int64(known + shorter*(1-math.Pow(1-gapWeight, float64(min(n, 1024))))))
		return
	}
	p.gap.Store(int64(gap))
}
