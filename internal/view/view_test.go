// SPDX-License-Identifier: Apache-2.0

package view

import "testing"

// TestMerge_SaysWhatDiffers: of a row that stands for several handlers, each sentence is
// there once, and those of handlers for which it serves come first.
func TestMerge_SaysWhatDiffers(t *testing.T) {
	row := Upstream{Why: "down"}
	for _, other := range []Upstream{{Why: "down"}, {Why: "up", Serving: true}, {Why: "up", Serving: true}, {Why: "draining"}} {
		row.Merge(other)
	}
	if want := "up; elsewhere in this pool: down; elsewhere in this pool: draining"; row.Why != want || !row.Serving {
		t.Errorf("%q, serving %v; want %q and true", row.Why, row.Serving, want)
	}
}
