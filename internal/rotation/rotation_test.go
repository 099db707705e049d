// SPDX-License-Identifier: Apache-2.0

package rotation

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// nginx's own loop, quadratic and plain, is what New must agree with.
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

func TestOrder(t *testing.T) {
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
		"all zero: nobody":          {[]int{0, 0}, []int{}},
		"nothing given: nobody":     {nil, []int{}},
		"the heaviest ends a cycle": {[]int{1, 1, 2}, []int{2, 0, 1, 2}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := walk(New(tc.weights), 0); !slices.Equal(got, tc.want) {
				t.Errorf("New(%v) = %v, want %v", tc.weights, got, tc.want)
			}
		})
	}
}

func TestOrderAgreesWithNginx(t *testing.T) {
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

// Whatever the ticket a cycle begins at, every index has its exact share.
func TestExactCountsFromAnyTicket(t *testing.T) {
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

func BenchmarkNew(b *testing.B) {
	weights := make([]int, 1000)
	for i := range weights {
		weights[i] = 1 + i%10
	}
	for b.Loop() {
		New(weights)
	}
}
