// SPDX-License-Identifier: Apache-2.0

package rotation

import (
	"slices"
	"testing"
)

// Weights, and products of the steps of a cycle, may exceed 32 bits, which is the size
// of an int on some platforms.
func TestNew_SumsMayExceed32Bits(t *testing.T) {
	// four times 2³⁰ is 0 in 32 bits
	if got, want := walk(New([]int{1 << 30, 1 << 30, 1 << 30, 1 << 30}), 0), []int{0, 1, 2, 3}; !slices.Equal(got, want) {
		t.Errorf("order %v, want %v", got, want)
	}
	for _, weights := range [][]int{
		{MaxLen - 1, 1},
		{MaxLen / 2, MaxLen/4 + 1, MaxLen/4 - 1},
		{1, MaxLen / 2, MaxLen/2 - 1},
	} {
		if !slices.Equal(walk(New(weights), 0), nginxOrder(weights, MaxLen)) {
			t.Errorf("the order of %v is not nginx's", weights)
		}
	}
}
