// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"testing"

	"github.com/caddy-alive/caddy-alive/internal/limits"
)

// An answer passes if, and only if, one of the ranges contains its code.
func TestMatches_AnyRangeDecides(t *testing.T) {
	t.Parallel()
	ranges := []limits.StatusRange{{First: 204, Last: 204}, {First: 300, Last: 399}, {First: 404, Last: 404}}
	for code := range 1000 {
		want := code == 204 || 300 <= code && code <= 399 || code == 404
		if got := matches(ranges, code); got != want {
			t.Errorf("matches(%v, %d) = %t, want %t", ranges, code, got, want)
		}
	}
	if matches(nil, 200) {
		t.Error("matches(nil, 200) = true, want false: the list is empty")
	}
}
