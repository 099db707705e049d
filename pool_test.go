// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/monitor"
)

// handMade makes members of a pool by hand. Each word is a verdict (u, d, or ?
// for none yet), a weight, and a b for a backup: u5 d1 ?2b.
func handMade(words string) []*member {
	var members []*member
	for word := range strings.FieldsSeq(words) {
		target := health.NewTarget(health.Settings{
			Interval: time.Hour, FastInterval: time.Hour, DownInterval: time.Hour,
			Timeout: time.Second, Passes: 1, Fails: 1,
		})
		m := &member{watches: []*monitor.Monitor{{Target: target}}}
		var verdict rune
		if _, err := fmt.Sscanf(strings.TrimSuffix(word, "b"), "%c%d", &verdict, &m.weight); err != nil {
			panic(fmt.Sprintf("%s: %v", word, err))
		}
		m.backup = strings.HasSuffix(word, "b")
		if verdict != '?' {
			decide(target, verdict == 'u')
		}
		members = append(members, m)
	}
	return members
}

// withWeights sets the weights of a pool, backups with a negative one.
func withWeights(weights ...int) func(*Selection) {
	return func(s *Selection) {
		for i, w := range weights {
			s.members[i].weight, s.members[i].backup = max(w, -w), w < 0
		}
	}
}

func retrying(s *Selection) { s.retries = true }

// same returns one request again and again.
func same() func() *http.Request {
	r := get()
	return func() *http.Request { return r }
}

// share returns how often each of n positions has its turn in one cycle.
func (t *tier) share(n int) []int {
	c := make([]int, n)
	for i := range uint64(t.order.Len()) {
		c[t.order.At(i)]++
	}
	return c
}

// inLowestTerms divides weights by their greatest common divisor.
func inLowestTerms(weights []int) []int {
	divisor := 0
	for _, w := range weights {
		for a := w; a > 0; {
			divisor, a = a, divisor%a
		}
	}
	got := slices.Clone(weights)
	for i := range got {
		got[i] /= max(divisor, 1)
	}
	return got
}

// The tiers, best first, and what is left when they are empty, as part 3 of
// DESIGN.md has them. Weights count in every one of them, and 0 is nobody.
func TestTiers(t *testing.T) {
	half := failOpen{percent: 50}
	none := []int(nil)
	for _, tc := range []struct {
		rule     string
		members  string
		failOpen failOpen
		tiers    [][]int // turns in a cycle, by position
		unknown  []int
		resort   []int
		mood     mood
	}{
		{"primaries, then backups", "u2 u1 u3b", failOpen{}, [][]int{{2, 1, 0}, {0, 0, 1}}, none, []int{2, 1, 0}, fine},
		{"one primary is enough", "d2 u1 u3b", failOpen{}, [][]int{{0, 1, 0}, {0, 0, 1}}, none, []int{2, 1, 0}, fine},
		{"no primary: backups by weight", "d2 d1 u3b u1b d1b", failOpen{}, [][]int{{0, 0, 3, 1, 0}}, none, []int{2, 1, 0, 0, 0}, fine},
		{"both down: the primaries", "d2 d1 d3b", failOpen{}, nil, none, []int{2, 1, 0}, lastResort},
		{"only backups have a weight: those", "d0 u0 d3b d1b", failOpen{}, nil, none, []int{0, 0, 3, 1}, lastResort},
		{"a primary of weight 0 does not keep backups out", "u0 d1 u3b", failOpen{}, [][]int{{0, 0, 1}}, none, []int{0, 1, 0}, fine},
		{"a backup of weight 0 serves nobody", "d1 u0b", failOpen{}, nil, none, []int{1, 0}, lastResort},
		{"all of weight 0: unavailable", "u0 d0 u0b", failOpen{}, nil, none, none, unavailable},
		{"2 of 6 up at 50%: all six", "u3 u1 d2 d1 d1 d1", half, [][]int{{3, 1, 2, 1, 1, 1}, {3, 1, 0, 0, 0, 0}}, none, []int{3, 1, 2, 1, 1, 1}, failedOpen},
		{"exactly 3 of 6: only those", "u3 u1 u2 d1 d1 d1", half, [][]int{{3, 1, 2, 0, 0, 0}}, none, []int{3, 1, 2, 1, 1, 1}, fine},
		{"4 of 6: only those", "u3 u1 u2 d1 u1 d1", half, [][]int{{3, 1, 2, 0, 1, 0}}, none, []int{3, 1, 2, 1, 1, 1}, fine},
		{"2 of 6, but a backup serves", "u3 u1 d2 d1 d1 d1 u1b", half, [][]int{{3, 1, 0, 0, 0, 0, 0}, {0, 0, 0, 0, 0, 0, 1}}, none, []int{3, 1, 2, 1, 1, 1, 0}, fine},
		{"2 of 6, and a backup that is down", "u3 u1 d2 d1 d1 d1 d1b", half, [][]int{{3, 1, 2, 1, 1, 1, 0}, {3, 1, 0, 0, 0, 0, 0}}, none, []int{3, 1, 2, 1, 1, 1, 0}, failedOpen},
		{"2 of 6, and a backup without a verdict", "u3 u1 d2 d1 d1 d1 ?1b", half, [][]int{{3, 1, 2, 1, 1, 1, 0}, {3, 1, 0, 0, 0, 0, 0}}, []int{0, 0, 0, 0, 0, 0, 1}, []int{3, 1, 2, 1, 1, 1, 0}, failedOpen},
		{"those without a verdict do not count: 1 of 2", "u1 d1 ?1 ?1 ?1", half, [][]int{{1, 0, 0, 0, 0}}, []int{0, 0, 1, 1, 1}, []int{1, 1, 1, 1, 1}, fine},
		{"those of weight 0 do not count: 1 of 2", "u1 d1 d0 d0 d0", half, [][]int{{1, 0, 0, 0, 0}}, none, []int{1, 1, 0, 0, 0}, fine},
		{"none of 2 up at 50%: all", "d2 d1", half, [][]int{{2, 1}}, none, []int{2, 1}, failedOpen},
		{"100%: all must serve", "u1 u1 d1", failOpen{percent: 100}, [][]int{{1, 1, 1}, {1, 1, 0}}, none, []int{1, 1, 1}, failedOpen},
		{"100%, and all serve", "u1 u1 u1", failOpen{percent: 100}, [][]int{{1, 1, 1}}, none, []int{1, 1, 1}, fine},
		{"none_up with some up", "u1 d1 d1 d1 d1", failOpen{}, [][]int{{1, 0, 0, 0, 0}}, none, []int{1, 1, 1, 1, 1}, fine},
		{"none_up with none up: all, by weight", "d5 d1 d1 d0", failOpen{}, nil, none, []int{5, 1, 1, 0}, lastResort},
		{"off with none up: unavailable", "d5 d1 d1b", failOpen{never: true}, nil, none, none, unavailable},
		{"off with some up", "u5 d1 u1b", failOpen{never: true}, [][]int{{1, 0, 0}, {0, 0, 1}}, none, none, fine},
		{"no verdicts yet: nothing to say", "?2 ?1 d1 ?1b", failOpen{}, nil, []int{2, 1, 0, 0}, []int{2, 1, 1, 0}, fine},
		{"only backups have no verdict yet", "d2 d1 ?1b", failOpen{}, nil, []int{0, 0, 1}, []int{2, 1, 0}, fine},
		{"an empty pool", "", failOpen{}, nil, none, none, fine},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			members := handMade(tc.members)
			s := newSnapshot(members, rules{failOpen: tc.failOpen}, time.Now())
			wantSnapshot(t, s, len(members), tc.tiers, tc.unknown, tc.resort, tc.mood)
		})
	}
}

// fail_open fails open below its percentage, not at it, whatever its binary
// fraction is.
func TestFailOpenAtExactlyItsShare(t *testing.T) {
	up, down := handMade("u1")[0], handMade("d1")[0]
	for percent := 1; percent <= 100; percent++ {
		text := fmt.Sprintf("%d%%", percent)
		open, err := parseFailOpen(text)
		if err != nil {
			t.Fatal(err)
		}
		for n := 1; n <= 100; n++ {
			if percent*n%100 != 0 {
				continue
			}
			serving := percent * n / 100
			for _, tc := range []struct {
				serving int
				want    mood
			}{{serving, fine}, {serving - 1, failedOpen}} {
				members := append(slices.Repeat([]*member{up}, tc.serving), slices.Repeat([]*member{down}, n-tc.serving)...)
				if got := newSnapshot(members, rules{failOpen: open}, time.Now()).mood; got != tc.want {
					t.Errorf("fail_open %s with %d of %d up: mood %d, want %d", text, tc.serving, n, got, tc.want)
				}
			}
		}
	}
}

// wantWeights says by the rules of DESIGN.md, part 3, who gets requests now and
// with what weight; all 0 is nobody.
func wantWeights(members []*member, open failOpen) []int {
	among := func(is func(*member) bool) []int {
		weights := make([]int, len(members))
		for i, m := range members {
			if is(m) {
				weights[i] = m.weight
			}
		}
		return weights
	}
	amount := func(weights []int) (n int) {
		for _, w := range weights {
			n += min(w, 1)
		}
		return n
	}
	primaries := among(func(m *member) bool { return !m.backup })
	serving := among(func(m *member) bool { return !m.backup && m.status() == health.Up })
	decided := among(func(m *member) bool { return !m.backup && m.status() != health.Unknown })
	backups := among(func(m *member) bool { return m.backup && m.status() == health.Up })
	unknown := among(func(m *member) bool { return !m.backup && m.status() == health.Unknown })
	if amount(unknown) == 0 {
		unknown = among(func(m *member) bool { return m.backup && m.status() == health.Unknown })
	}
	switch {
	case amount(backups) == 0 && float64(100*amount(serving)) < open.percent*float64(amount(decided)):
		return primaries
	case amount(serving) > 0:
		return serving
	case amount(backups) > 0:
		return backups
	case amount(unknown) > 0:
		return unknown
	case open.never:
		return make([]int, len(members))
	case amount(primaries) > 0:
		return primaries
	}
	return among(func(m *member) bool { return m.backup })
}

// Whatever the weights, deaths and joins, over a whole cycle those whose turn it
// is have exactly their shares, and nobody else gets anything: no weight of 0
// in any tier, no backup while a primary serves, never nil while anybody has a
// weight. The quick and the slow way of Select agree.
func TestSharesAreExactInEveryTier(t *testing.T) {
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 2))
		n := 1 + rng.IntN(9)
		weights := make([]int, n)
		for i := range weights {
			weights[i] = rng.IntN(11)
			if rng.IntN(4) == 0 {
				weights[i] = -weights[i]
			}
		}
		open := []failOpen{{}, {percent: 25}, {percent: 50}, {percent: 100}, {never: true}}[rng.IntN(5)]
		retries := rng.IntN(2) == 0
		p := newPolicy(t, strings.Repeat("?", n), withWeights(weights...), func(s *Selection) {
			s.rules.failOpen, s.retries, s.hold = open, retries, 0
		})
		verdicts := []byte(strings.Repeat("?", n))
		for step := range 12 {
			for range 1 + rng.IntN(3) {
				verdicts[rng.IntN(n)] = "ud"[rng.IntN(2)]
			}
			if step > 0 {
				p.decide(string(verdicts))
			}
			want := inLowestTerms(wantWeights(p.members, open))
			length := 0
			for _, w := range want {
				length += w
			}
			got := p.picks(get, max(length, 1))
			if slices.Contains(got, -1) != (length == 0) || !slices.Equal(counts(got, n), want) {
				t.Fatalf("seed %d, step %d: weights %v (backups below 0), verdicts %s, %+v, retries %v: picks %v, want counts %v",
					seed, step, weights, verdicts, open, retries, got, want)
			}
		}
	}
}

// After a change the order goes on somewhere: the heaviest is not always first.
func TestAChangeDoesNotRestartAtTheHeaviest(t *testing.T) {
	const seed = 3
	rng := rand.New(rand.NewPCG(seed, 3))
	p := newPolicy(t, "uuuu", withWeights(5, 1, 1, 1))
	var first []int
	for range 200 {
		p.picks(get, rng.IntN(8))
		p.decide("???d")
		first = append(first, p.picks(get, 1)...)
		p.picks(get, rng.IntN(8))
		p.decide("???u")
		first = append(first, p.picks(get, 1)...)
	}
	// its share is 5/7 and 5/8 in turn
	if got := counts(first, 4); got[0] < 220 || got[0] > 320 {
		t.Errorf("seed %d: picks right after 400 changes %v, want about 268 of the heaviest", seed, got)
	}
}

// Backups come in when the last primary goes, go when the first is back, and
// are not what is asked when nobody is alive; what is told of it is told once.
func TestBackupsTakeTurns(t *testing.T) {
	p := newPolicy(t, "uuuu", withWeights(2, 1, -3, -1))
	for _, tc := range []struct {
		verdicts string
		want     []int // of 12 picks
	}{
		{"uuuu", []int{8, 4, 0, 0}},
		{"du??", []int{0, 12, 0, 0}},
		{"?d??", []int{0, 0, 9, 3}},
		{"??d?", []int{0, 0, 0, 12}},
		{"???d", []int{8, 4, 0, 0}},
		{"??u?", []int{0, 0, 12, 0}},
		{"u???", []int{12, 0, 0, 0}},
	} {
		p.decide(tc.verdicts)
		if got := counts(p.picks(get, 12), 4); !slices.Equal(got, tc.want) {
			t.Errorf("picks after %s %v, want %v", tc.verdicts, got, tc.want)
		}
	}
	p.wantLog(t,
		"warn: no upstream is alive: requests go to all of them, as the last resort",
		"info: enough upstreams are alive again: requests go to those alive only")
}

func (p *policy) wantLog(t *testing.T, want ...string) {
	t.Helper()
	var got []string
	for _, entry := range p.logs.All() {
		got = append(got, fmt.Sprintf("%s: %s", entry.Level, entry.Message))
	}
	if !slices.Equal(got, want) {
		t.Errorf("logged %q, want %q", got, want)
	}
}

// Each mood of a pool is logged once when it begins, and so is its end.
func TestMoodsAreLoggedOnce(t *testing.T) {
	back := "info: enough upstreams are alive again: requests go to those alive only"
	for _, tc := range []struct {
		open failOpen
		want []string
	}{
		{failOpen{}, []string{"warn: no upstream is alive: requests go to all of them, as the last resort", back}},
		{failOpen{percent: 50}, []string{"warn: too few upstreams are alive: requests go to all of them, whatever their health", back}},
		{failOpen{never: true}, []string{"warn: no upstream is alive that may get requests: they are answered 503", back}},
	} {
		p := newPolicy(t, "uuuu", func(s *Selection) { s.rules.failOpen = tc.open })
		for _, verdicts := range []string{"?ddd", "d???", "?u??", "?d??", "uuu?", "???u"} {
			p.decide(verdicts)
			p.refresh() // no news, and so nothing to say
			p.picks(get, 10)
		}
		want := tc.want
		if tc.open.percent == 0 { // one came back in between
			want = slices.Repeat(want, 2)
		}
		p.wantLog(t, want...)
	}
}

// A retry goes to every primary and every backup once before anything repeats:
// primaries that were tried do not keep backups out, and those that serve come before
// those that are down. Then it starts over, not with the last.
func TestRetriesGoOnToBackups(t *testing.T) {
	for _, tc := range []struct {
		verdicts          string
		weights           []int
		open              failOpen
		primaries, others []int
	}{
		{"uu", []int{1, -1}, failOpen{}, []int{0}, []int{1}},
		{"uuuu", []int{5, 1, -2, -1}, failOpen{}, []int{0, 1}, []int{2, 3}},
		{"uduudu", []int{5, 1, 2, -2, -1, -7}, failOpen{}, []int{0, 2}, []int{3, 5, 1, 4}},
		{"uduudu", []int{5, 1, 2, -2, -1, -7}, failOpen{never: true}, []int{0, 2}, []int{3, 5}},
		{"uuudd", []int{256, 1, -1, 1, -1}, failOpen{}, []int{0, 1}, []int{2, 3, 4}},
		{"uuudd", []int{256, 1, -1, 0, -1}, failOpen{}, []int{0, 1}, []int{2, 4}},
		{"uuu", []int{0, 1, -1}, failOpen{}, []int{1}, []int{2}},
		{"ddd", []int{9, 1, -1}, failOpen{}, []int{0, 1}, []int{2}},
		{"uddd", []int{3, 1, 2, -1}, failOpen{percent: 50}, []int{0, 1, 2}, []int{3}},
	} {
		t.Run(tc.verdicts, func(t *testing.T) {
			p := newPolicy(t, tc.verdicts, withWeights(tc.weights...), retrying, func(s *Selection) { s.rules.failOpen = tc.open })
			for range 100 {
				round := len(tc.primaries) + len(tc.others)
				got := p.picks(same(), 4*round)
				for i := range got[1:] {
					if got[i] == got[i+1] {
						t.Fatalf("one request tried %v: the same twice in a row", got)
					}
				}
				for r := range slices.Chunk(slices.Clone(got), round) {
					slices.Sort(r)
					if all := slices.Sorted(slices.Values(slices.Concat(tc.primaries, tc.others))); !slices.Equal(r, all) {
						t.Fatalf("one request tried %v, want each of %v once before any again", got, all)
					}
				}
				if first := slices.Sorted(slices.Values(got[:len(tc.primaries)])); !slices.Equal(first, tc.primaries) {
					t.Fatalf("one request tried %v, want the primaries %v before backups", got, tc.primaries)
				}
			}
		})
	}
}

// A primary that came back after the backup was tried, and was tried last, is
// not what the request starts over with.
func TestStartingOverAvoidsThePrimaryThatWasLast(t *testing.T) {
	p := newPolicy(t, "du", withWeights(1, -1), retrying)
	r := same()
	got := p.picks(r, 1)
	p.decide("u?")
	if got = append(got, p.picks(r, 4)...); !slices.Equal(got, []int{1, 0, 1, 0, 1}) {
		t.Errorf("one request tried %v, want the backup, the primary that came back, and the backup again", got)
	}
}

// One that fails, but is not known to be down, leaves its share to the others
// in proportion to their weights: what its requests are retried on must not
// all be its neighbour's.
func TestTheShareOfATriedOneIsLeftToAll(t *testing.T) {
	for _, weights := range [][]int{
		{1, 1, 1, 1},
		{5, 1, 1},
		{5, 4, 3, 2, 1},
		{1, 10, 10, 1, 5},
		{10, 10, 1, 1, 1, 1, 1, 1},
		{100, 1, 1},
		{256, 1, 1, 1, 1},
		{256, 3, 2, 1},
	} {
		t.Run(fmt.Sprint(weights), func(t *testing.T) {
			p := newPolicy(t, strings.Repeat("u", len(weights)), withWeights(weights...), retrying)
			const requests = 20000
			served := make([]int, len(weights))
			for range requests {
				r := same()
				for {
					if i := p.picks(r, 1)[0]; i != 0 { // the first is sick
						served[i]++
						break
					}
				}
			}
			wantProportional(t, served, append([]int{0}, weights[1:]...), 0.05)
		})
	}
}

// The same when many cannot take a request, such as a rack that fails: the first
// one after it must not get all that was theirs.
func TestTheShareOfManyTriedIsLeftToAll(t *testing.T) {
	const n = 40
	for _, sick := range []int{1, 5, 20, 36} {
		t.Run(fmt.Sprint(sick), func(t *testing.T) {
			p := newPolicy(t, strings.Repeat("u", n), retrying)
			served, want := make([]int, n), make([]int, n)
			for range 300 * n {
				r := get()
				for _, u := range p.upstreams[:sick] {
					p.attempts(r).add(u)
				}
				served[p.picks(func() *http.Request { return r }, 1)[0]]++
			}
			for i := sick; i < n; i++ {
				want[i] = 1
			}
			wantProportional(t, served, want, 0.15)
		})
	}
}

// wantProportional reports who is off its share of what was served by more than
// a part of that share.
func wantProportional(t *testing.T, served, weights []int, off float64) {
	t.Helper()
	var requests, total int
	for i, w := range weights {
		total += w
		requests += served[i]
	}
	for i, w := range weights {
		want := float64(requests) * float64(w) / float64(total)
		if got := float64(served[i]); got < want*(1-off) || got > want*(1+off) {
			t.Errorf("upstream %d served %v requests, want %.0f in proportion to its weight (%.1f times its share); all: %v", i, got, want, got/want, served)
			return
		}
	}
}

// chooser is a policy for select that records what it was offered.
type chooser struct {
	offered []string
	choose  func(reverseproxy.UpstreamPool) *reverseproxy.Upstream
}

func (c *chooser) Select(pool reverseproxy.UpstreamPool, _ *http.Request, _ http.ResponseWriter) *reverseproxy.Upstream {
	var dials []string
	for _, u := range pool {
		dials = append(dials, u.Dial)
	}
	slices.Sort(dials)
	c.offered = append(c.offered, strings.Join(dials, " "))
	return c.choose(pool)
}

func offer(indexes ...int) string {
	var dials []string
	for _, i := range indexes {
		dials = append(dials, address(i))
	}
	return strings.Join(dials, " ")
}

func last(pool reverseproxy.UpstreamPool) *reverseproxy.Upstream { return pool[len(pool)-1] }

// The policy of select is offered those that are alive, have a weight and were
// not tried, each once; backups when the primaries are used up.
func TestSelectIsOfferedTheAlive(t *testing.T) {
	c := &chooser{choose: last}
	p := newPolicy(t, "uduuuud", withWeights(3, 1, 1, 0, 2, -1, -1), retrying, func(s *Selection) { s.inner = c })
	r := same()
	var got []int
	for range 5 {
		i := p.picks(r, 1)[0]
		got = append(got, i)
	}
	if want := offer(0, 2, 4); c.offered[0] != want {
		t.Errorf("offered %s first, want %s", c.offered[0], want)
	}
	for i := 1; i < 3; i++ {
		var untried []int
		for _, u := range []int{0, 2, 4} {
			if !slices.Contains(got[:i], u) {
				untried = append(untried, u)
			}
		}
		if want := offer(untried...); c.offered[i] != want {
			t.Errorf("offered %s after %v, want %s", c.offered[i], got[:i], want)
		}
	}
	if want := offer(5); got[3] != 5 || c.offered[3] != want {
		t.Errorf("the fourth try got %d, offered %v; want the backup", got[3], c.offered)
	}
	for range 3 {
		got = append(got, p.picks(r, 1)[0])
	}
	if down := slices.Sorted(slices.Values(got[4:6])); !slices.Equal(down, []int{1, 6}) {
		t.Errorf("tried %v, want those that are down after those that serve", got)
	}
	if !slices.Contains(got[:3], got[6]) {
		t.Errorf("tried %v, want a primary again at last", got)
	}
}

// Where the policy of select wants nobody, round robin picks.
func TestSelectThatWantsNobody(t *testing.T) {
	c := &chooser{choose: func(reverseproxy.UpstreamPool) *reverseproxy.Upstream { return nil }}
	p := newPolicy(t, "uduu", func(s *Selection) { s.inner = c })
	if got, want := counts(p.picks(get, 300), 4), []int{100, 0, 100, 100}; !slices.Equal(got, want) {
		t.Errorf("picks %v, want %v", got, want)
	}
	if len(c.offered) != 300 || c.offered[0] != offer(0, 2, 3) {
		t.Errorf("asked %d times, the first with %q; want at every pick", len(c.offered), c.offered[0])
	}
}

// Caddy's own policies pick among the alive as they do among all.
func TestSelectWithPoliciesOfCaddy(t *testing.T) {
	for _, tc := range []struct {
		policy   reverseproxy.Selector
		verdicts string
		weights  []int
		want     []int // who may be picked
	}{
		{reverseproxy.FirstSelection{}, "duuu", []int{1, 1, 1, 1}, []int{1}},
		{reverseproxy.FirstSelection{}, "uuuu", []int{0, 1, 1, 1}, []int{1}},
		{reverseproxy.FirstSelection{}, "dduu", []int{-1, 1, 1, -1}, []int{2}},
		{reverseproxy.FirstSelection{}, "uddu", []int{-1, 1, 1, -1}, []int{0}},
		{reverseproxy.FirstSelection{}, "dddd", []int{-1, 1, 1, -1}, []int{1}}, // the last resort
		{reverseproxy.LeastConnSelection{}, "duud", []int{1, 1, 1, 1}, []int{1, 2}},
		{reverseproxy.LeastConnSelection{}, "ddud", []int{1, 1, -1, 1}, []int{2}},
		{reverseproxy.LeastConnSelection{}, "dddd", []int{1, 0, -1, 1}, []int{0, 3}},
	} {
		// the order of FirstSelection is that of the configuration, wherever the
		// rotation is: as many picks as a cycle has, and some
		p := newPolicy(t, tc.verdicts, withWeights(tc.weights...), func(s *Selection) { s.inner = tc.policy })
		got := p.picks(get, 200)
		slices.Sort(got)
		if got = slices.Compact(got); !slices.Equal(got, tc.want) {
			t.Errorf("%T over %s with weights %v picked %v, want %v", tc.policy, tc.verdicts, tc.weights, got, tc.want)
		}
	}
}

// With select too a request is held at a cold start, and goes to those without
// a verdict, and then to all, when it must.
func TestSelectHoldsAndHasALastResort(t *testing.T) {
	for _, tc := range []struct {
		rule, verdicts, after string
		waited                time.Duration
		offered               string
	}{
		{"the first that pass", "???", "duu", time.Second, offer(1, 2)},
		{"no verdict in time", "d??", "???", 2 * time.Second, offer(1, 2)},
		{"all turn out dead", "???", "ddd", time.Second, offer(0, 1, 2)},
		{"the last resort", "ddd", "???", 0, offer(0, 1, 2)},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := &chooser{choose: last}
				p := newPolicy(t, tc.verdicts, func(s *Selection) { s.inner = c })
				began := time.Now()
				result := p.held(get())
				synctest.Wait()
				if tc.waited > 0 {
					time.Sleep(time.Second)
					p.decide(tc.after)
				}
				u, waited := <-result, time.Since(began)
				if u == nil || waited != tc.waited || !slices.Equal(c.offered, []string{tc.offered}) {
					t.Errorf("picked %v after %v, offered %q; want %v and %q", u, waited, c.offered, tc.waited, tc.offered)
				}
			})
		})
	}
}

func slowly(floor float64) func(*Selection) {
	return func(s *Selection) { s.rules.slowStart, s.rules.floor = 20*time.Second, floor }
}

// The slow start, in virtual time, over the same 20s window everywhere: each
// step waits, then decides, then looks at the shares.
func TestSlowStart(t *testing.T) {
	type step struct {
		wait     time.Duration
		verdicts string
		want     []int // shares in lowest terms
	}
	const long = time.Minute
	for _, tc := range []struct {
		rule, verdicts string
		floor          float64
		weights        []int
		steps          []step
	}{
		{"half-way 1:2, over 1:1", "uu", 0.1, []int{1, 1}, []step{
			{long, "d?", []int{0, 1}},
			{time.Second, "u?", []int{1, 10}},
			{10 * time.Second, "??", []int{1, 2}},
			{9 * time.Second, "??", []int{19, 20}},
			{time.Second, "??", []int{1, 1}},
			{long, "??", []int{1, 1}},
		}},
		{"a floor of 35% holds until it is passed", "uu", 0.35, []int{1, 1}, []step{
			{long, "d?", []int{0, 1}},
			{time.Second, "u?", []int{7, 20}},
			{6999 * time.Millisecond, "??", []int{7, 20}},
			{1001 * time.Millisecond, "??", []int{2, 5}},
		}},
		{"it is the share of the weight", "uu", 0.1, []int{3, 2}, []step{
			{long, "d?", []int{0, 1}},
			{time.Second, "u?", []int{3, 20}},
			{10 * time.Second, "??", []int{3, 4}},
			{10 * time.Second, "??", []int{3, 2}},
		}},
		{"weight 0 has nothing to ramp, and does not count", "uuu", 0.1, []int{0, 1, 1}, []step{
			{long, "dd?", []int{0, 0, 1}},
			{time.Second, "uu?", []int{0, 1, 10}},
		}},
		{"a floor of 0 is still somebody", "uu", 0, []int{1, 1}, []step{
			{long, "d?", []int{0, 1}},
			{time.Second, "u?", []int{1, 20}},
		}},
		{"down inside the window: starts over", "uu", 0.1, []int{1, 1}, []step{
			{long, "d?", []int{0, 1}},
			{time.Second, "u?", []int{1, 10}},
			{15 * time.Second, "??", []int{3, 4}},
			{0, "d?", []int{0, 1}},
			{time.Second, "u?", []int{1, 10}},
			{10 * time.Second, "??", []int{1, 2}},
		}},
		{"cold start of the whole pool: no ramp", "uuu", 0.1, []int{1, 1, 1}, []step{
			{0, "???", []int{1, 1, 1}},
			{5 * time.Second, "???", []int{1, 1, 1}},
		}},
		{"cold start: one goes down and returns, and the others carry on", "uuu", 0.1, []int{1, 1, 1}, []step{
			{5 * time.Second, "d??", []int{0, 1, 1}},
			{time.Second, "u??", []int{1, 10, 10}},
			{10 * time.Second, "???", []int{1, 2, 2}},
		}},
		{"cold start: one returns after all went down", "uu", 0.1, []int{1, 1}, []step{
			{5 * time.Second, "d?", []int{0, 1}},
			{0, "?d", []int{1, 1}}, // the last resort
			{time.Second, "u?", []int{1, 0}},
			{10 * time.Second, "?u", []int{1, 1}},
			{9 * time.Second, "??", []int{1, 1}},
			{time.Second, "??", []int{2, 1}}, // the first is past it, and the other half-way
			{10 * time.Second, "??", []int{1, 1}},
		}},
		{"one joins two that run long", "uu?", 0.1, []int{1, 1, 1}, []step{
			{long, "???", []int{1, 1, 0}},
			{0, "??u", []int{10, 10, 1}},
			{10 * time.Second, "???", []int{2, 2, 1}},
			{10 * time.Second, "???", []int{1, 1, 1}},
		}},
		{"two of three come back together: the third carried all", "uuu", 0.1, []int{1, 1, 1}, []step{
			{long, "dd?", []int{0, 0, 1}},
			{time.Second, "u??", []int{1, 0, 10}},
			{0, "?u?", []int{1, 1, 10}},
			{10 * time.Second, "???", []int{1, 1, 2}},
			{10 * time.Second, "???", []int{1, 1, 1}},
		}},
		{"two run, one of them half-way, and two join: it does not jump", "uu??", 0.1, []int{1, 1, 1, 1}, []step{
			{long, "?d??", []int{1, 0, 0, 0}},
			{time.Second, "?u??", []int{10, 1, 0, 0}},
			{10 * time.Second, "??uu", []int{10, 5, 1, 1}},
			{10 * time.Second, "????", []int{2, 2, 1, 1}},
		}},
		{"one runs, and four join", "u????", 0.1, []int{1, 1, 1, 1, 1}, []step{
			{time.Second, "?uuuu", []int{10, 1, 1, 1, 1}},
			{10 * time.Second, "?????", []int{2, 1, 1, 1, 1}},
		}},
		{"a backup that serves is no reason for primaries to ramp", "ddu", 0.1, []int{1, 1, -1}, []step{
			{long, "???", []int{0, 0, 1}},
			{0, "uu?", []int{1, 1, 0}},
		}},
		{"backups ramp among themselves", "duud", 0.1, []int{1, -1, -1, -1}, []step{
			{long, "?d??", []int{0, 0, 1, 0}},
			{time.Second, "?u?u", []int{0, 1, 10, 1}},
			{0, "u???", []int{1, 0, 0, 0}},
		}},
		{"two of four come back together", "uuuu", 0.1, []int{1, 1, 1, 1}, []step{
			{long, "dd??", []int{0, 0, 1, 1}},
			{time.Second, "uu??", []int{1, 1, 10, 10}},
			{10 * time.Second, "????", []int{1, 1, 2, 2}},
		}},
		{"the last one that was past it dies", "uu", 0.1, []int{1, 1}, []step{
			{long, "d?", []int{0, 1}},
			{time.Second, "u?", []int{1, 10}},
			{time.Second, "?d", []int{1, 0}},
		}},
		{"backups do not keep primaries from it", "uuu", 0.1, []int{1, 1, -1}, []step{
			{long, "d??", []int{0, 1, 0}},
			{time.Second, "u?d", []int{1, 10, 0}},
			{time.Second, "??u", []int{1, 10, 0}},
		}},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPolicy(t, tc.verdicts, withWeights(tc.weights...), slowly(tc.floor))
				for i, s := range tc.steps {
					time.Sleep(s.wait)
					p.decide(s.verdicts)
					synctest.Wait() // for the timer of this very moment
					length := 0
					for _, w := range s.want {
						length += w
					}
					got, want := counts(p.picks(get, 2*length), len(s.want)), slices.Clone(s.want)
					for i := range want {
						want[i] *= 2
					}
					if !slices.Equal(got, want) {
						t.Errorf("step %d, %v later with %s: picks %v, want %v", i, s.wait, s.verdicts, got, want)
					}
				}
			})
		})
	}
}

// Nothing wakes up while nobody ramps, and nothing is left behind by Cleanup,
// not even when a verdict comes in after it.
func TestSlowStartEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPolicy(t, "uu", slowly(0.1))
		quiet := func(when string) {
			t.Helper()
			synctest.Wait()
			before := p.current.Load()
			time.Sleep(time.Hour)
			synctest.Wait()
			if p.current.Load() != before {
				t.Errorf("%s: the pool was looked at again", when)
			}
		}
		quiet("after a cold start")
		p.decide("d?")
		p.decide("u?")
		before := p.current.Load()
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if p.current.Load() == before {
			t.Error("a slow start does not go on by itself")
		}
		time.Sleep(30 * time.Second)
		quiet("after the window")
		p.decide("d?")
		p.decide("u?")
		if err := p.Cleanup(); err != nil {
			t.Fatal(err)
		}
		quiet("after Cleanup inside the window")
		p.decide("d?")
		p.decide("u?")
		quiet("after a verdict after Cleanup")
	})
}

// A new policy over the same targets, as a reload makes one, goes on with the
// slow start where the old one was.
func TestSlowStartSurvivesReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old := newPolicy(t, "uu", slowly(0.1))
		time.Sleep(time.Minute)
		old.decide("d?")
		old.decide("u?")
		time.Sleep(5 * time.Second)
		p := newPolicy(t, "??", slowly(0.1), func(s *Selection) { s.members, s.byDial = old.members, old.byDial })
		if err := old.Cleanup(); err != nil {
			t.Fatal(err)
		}
		if got, want := counts(p.picks(get, 100), 2), []int{20, 80}; !slices.Equal(got, want) {
			t.Errorf("picks after a reload a quarter through the window %v, want %v", got, want)
		}
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if got, want := counts(p.picks(get, 90), 2), []int{30, 60}; !slices.Equal(got, want) {
			t.Errorf("picks half-way %v, want %v", got, want)
		}
	})
}

// While verdicts flip under way, no request gets nil, nobody of weight 0 gets
// one, no backup gets one while a primary serves all the time, and once they
// settled the shares are exact.
func TestFlipsWhilePickingWithBackups(t *testing.T) {
	for _, tc := range []struct {
		rule  string
		flips [2]string
		never []int
		want  []int // of 400 picks in the end
	}{
		{"a primary serves all the time", [2]string{"?ddddd", "?ududu"}, []int{3, 4, 5}, []int{200, 200, 0, 0, 0, 0}},
		{"a backup serves all the time", [2]string{"ddd??d", "uud??u"}, []int{3}, []int{200, 200, 0, 0, 0, 0}},
		{"nobody does at times", [2]string{"dddddd", "dduddu"}, []int{3}, []int{0, 0, 400, 0, 0, 0}},
	} {
		for _, retries := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/retries %v", tc.rule, retries), func(t *testing.T) {
				p := newPolicy(t, "uuuuuu", withWeights(2, 2, 1, 0, -2, -1), func(s *Selection) { s.retries = retries })
				stop := make(chan struct{})
				var wg sync.WaitGroup
				for range 4 {
					wg.Go(func() {
						for {
							select {
							case <-stop:
								return
							default:
							}
							if i := p.picks(get, 1)[0]; i < 0 || slices.Contains(tc.never, i) {
								t.Errorf("picked %d", i)
								return
							}
						}
					})
				}
				for range 100 {
					p.decide(tc.flips[0])
					p.decide(tc.flips[1])
				}
				close(stop)
				wg.Wait()
				if got := counts(p.picks(get, 400), 6); !slices.Equal(got, tc.want) {
					t.Errorf("picks after the flips %v, want %v", got, tc.want)
				}
			})
		}
	}
}

// wantSnapshot compares who may get requests, and in which order, with what is
// wanted: the shares of n members in each tier. A nil list has nobody.
func wantSnapshot(t *testing.T, s *snapshot, n int, wantTiers [][]int, unknown, resort []int, wantMood mood) {
	t.Helper()
	var tiers [][]int
	for i, tier := range s.tiers {
		tiers = append(tiers, tier.share(n))
		if ignores := s.mood == failedOpen && i == 0; tier.anyHealth != ignores {
			t.Errorf("tier %d: any health %v, want %v", i, tier.anyHealth, ignores)
		}
	}
	if !slices.EqualFunc(tiers, wantTiers, slices.Equal) {
		t.Errorf("tiers %v, want %v", tiers, wantTiers)
	}
	for name, side := range map[string]struct {
		got  *tier
		want []int
	}{"unknown": {s.unknown(), unknown}, "last resort": {s.resort(), resort}} {
		want := side.want
		if want == nil {
			want = make([]int, n)
		}
		if got := side.got.share(n); !slices.Equal(got, want) {
			t.Errorf("%s %v, want %v", name, got, want)
		}
	}
	if s.mood != wantMood {
		t.Errorf("mood %d, want %d", s.mood, wantMood)
	}
	if resort := s.resort(); !resort.empty() && !resort.anyHealth {
		t.Error("the last resort respects health")
	}
	// the quick way must not go past what ignores health: a circuit breaker is
	// looked at there only
	if quick := len(s.tiers) > 0 && !s.tiers[0].anyHealth; quick != (s.best.Len() > 0) {
		t.Errorf("best has %d entries with tiers %v", s.best.Len(), tiers)
	}
}
