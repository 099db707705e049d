// SPDX-License-Identifier: Apache-2.0

package rotation

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// nginxOrder is nginx's own loop, which takes quadratic time. New must agree with it.
func nginxOrder(weights []int, steps int) []int {
	current := make([]int, len(weights))
	total := 0
	for _, w := range weights {
		total += w
	}
	order := make([]int, 0, steps)
	for range steps {
		best := -1
		for i, w := range weights {
			if w == 0 {
				continue
			}
			current[i] += w
			if best < 0 || current[i] > current[best] {
				best = i
			}
		}
		current[best] -= total
		order = append(order, best)
	}
	return order
}

func walk(o Order, from uint64) []int {
	got := make([]int, o.Len())
	for i := range got {
		got[i] = o.At(from + uint64(i))
	}
	return got
}

func TestNew_GivesTheSmoothOrder(t *testing.T) {
	for name, tc := range map[string]struct {
		weights []int
		want    []int
	}{
		"nginx's example":           {[]int{5, 1, 1}, []int{0, 0, 1, 0, 2, 0, 0}},
		"equal weights are exact":   {[]int{1, 1, 1, 1}, []int{0, 1, 2, 3}},
		"a common divisor drops":    {[]int{40, 40, 80}, []int{2, 0, 1, 2}},
		"zero gets nothing":         {[]int{0, 1, 0, 1}, []int{1, 3}},
		"alone":                     {[]int{0, 0, 7}, []int{2}},
		"negative counts as zero":   {[]int{-3, 1}, []int{1}},
		"all zero: none":            {[]int{0, 0}, []int{}},
		"no weights: none":          {nil, []int{}},
		"the heaviest ends a cycle": {[]int{1, 1, 2}, []int{2, 0, 1, 2}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := walk(New(tc.weights), 0); !slices.Equal(got, tc.want) {
				t.Errorf("New(%v) = %v, want %v", tc.weights, got, tc.want)
			}
		})
	}
}

func TestNew_AgreesWithNginx(t *testing.T) {
	for seed := range uint64(500) {
		rng := rand.New(rand.NewPCG(seed, 1))
		weights := make([]int, 1+rng.IntN(12))
		for i := range weights {
			weights[i] = rng.IntN(12)
		}
		o := New(weights)
		if o.Len() == 0 {
			continue
		}
		if got, want := walk(o, 0), nginxOrder(weights, o.Len()); !slices.Equal(got, want) {
			t.Fatalf("seed %d: New(%v) = %v, want %v", seed, weights, got, want)
		}
	}
}

// From any ticket, a cycle gives every index its exact share.
func TestOrder_SharesAreExactFromAnyTicket(t *testing.T) {
	weights := make([]int, 128)
	for i := range weights {
		weights[i] = i + 1
	}
	o := New(weights)
	for _, from := range []uint64{0, 1, 8255, 1 << 40} {
		counts := make([]int, len(weights))
		for _, i := range walk(o, from) {
			counts[i]++
		}
		if !slices.Equal(counts, weights) {
			t.Errorf("from ticket %d: counts %v, want %v", from, counts, weights)
		}
	}
}

// Weights beyond MaxLen are scaled: the cycle stays bounded, every index with a weight
// appears, and with n of them, the share of each is off by less than one turn in a
// cycle plus n turns times its share.
func TestNew_ScalesBeyondMaxLen(t *testing.T) {
	equal := func(n, weight int, others ...int) []int {
		return append(slices.Repeat([]int{weight}, n), others...)
	}
	cases := map[string][]int{
		"one of tiny weight":             {1, math.MaxInt / 2},
		"all others of tiny weight":      equal(1000, 1, 1<<30),
		"all others rounded up":          equal(1000, 3, 2*MaxLen-3000),
		"all others rounded down":        equal(1000, 5, 4*MaxLen-5000),
		"just beyond":                    {MaxLen - 1, 2},
		"zeros in between":               {0, 1 << 20, 0, 3<<20 + 1, 0, 5},
		"one index more than turns":      equal(MaxLen, 1, 1),
		"heavy among more than it holds": equal(MaxLen, 1, 1<<30),
	}
	for seed := range uint64(4) {
		rng := rand.New(rand.NewPCG(seed, 4))
		weights := make([]int, 2+rng.IntN(60))
		for i := range weights {
			weights[i] = rng.IntN(20) * (1 + rng.IntN(1+rng.IntN(100))) * 997
		}
		weights[0]++
		cases[fmt.Sprintf("seed %d", seed)] = weights
	}
	for name, weights := range cases {
		t.Run(name, func(t *testing.T) {
			var sum float64 // an int of 32 bits would overflow
			var n int
			for _, w := range weights {
				sum += float64(w)
				n += min(w, 1)
			}
			o := New(weights)
			if sum > MaxLen && (o.Len() < MaxLen-n/2 || o.Len() > MaxLen+n) {
				t.Errorf("the cycle has %d turns, want about %d", o.Len(), MaxLen)
			}
			counts := make([]int, len(weights))
			for _, i := range walk(o, 0) {
				counts[i]++
			}
			for i, w := range weights {
				share := float64(w) / sum
				got, want := float64(counts[i]), share*float64(o.Len())
				switch off := math.Abs(got - want); {
				case (w > 0) != (got > 0):
					t.Fatalf("index %d of weight %d has %v turns", i, w, got)
				case w > 0 && off >= 1+share*float64(n):
					t.Fatalf("index %d of weight %d has %v turns, want %.1f, give or take %.1f", i, w, got, want, 1+share*float64(n))
				}
			}
		})
	}
}

// No index comes in longer runs than in nginx's order: also around the end of a cycle,
// less than twice the length of perfectly even spreading.
func TestOrder_RunsAreBounded(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 5))
		weights := make([]int, 2+rng.IntN(12))
		sum := 0
		for i := range weights {
			weights[i] = 1 + rng.IntN(40)
			if rng.IntN(8) == 0 {
				weights[i] *= 10
			}
			sum += weights[i]
		}
		o := New(weights)
		for at, run, i := uint64(1), 1, o.At(0); at < 2*uint64(o.Len()); at++ {
			next := o.At(at)
			if next != i {
				i, run = next, 1
				continue
			}
			if run++; run*(sum-weights[i]) > 2*sum {
				t.Fatalf("seed %d: New(%v) has index %d %d times in a row", seed, weights, i, run)
			}
		}
	}
}

// Equal weights give plain round robin in the given order, whatever the weight.
func TestNew_EqualWeightsAreRoundRobin(t *testing.T) {
	for _, weight := range []int{1, 7, 256, 25600, MaxLen, math.MaxInt / 1000} {
		for _, n := range []int{1, 2, 3, 1000} {
			want := make([]int, n)
			for i := range want {
				want[i] = i
			}
			if got := walk(New(slices.Repeat([]int{weight}, n)), 0); !slices.Equal(got, want) {
				t.Errorf("%d of weight %d: a cycle of %d turns, want each once in order", n, weight, len(got))
			}
		}
	}
}

// BenchmarkNew measures the order that is made after a change of status, and the one
// that is made while some upstreams are in a slow start: weights times 100, in 20
// steps.
func BenchmarkNew(b *testing.B) {
	for _, ramping := range []int{0, 1, 100, 500} {
		b.Run(fmt.Sprintf("1000/ramping %d", ramping), func(b *testing.B) {
			weights := make([]int, 1000)
			for i := range weights {
				weights[i] = 1 + i%10
				if ramping > 0 {
					weights[i] *= 100
				}
				if i < ramping {
					weights[i] = weights[i] * (2 + i/10%18) / 20
				}
			}
			for b.Loop() {
				NewBounded(weights, 1<<15)
			}
		})
	}
}
