// SPDX-License-Identifier: Apache-2.0

package news

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
)

// Many doubts are taken out when they are old: each member reads them at each look. Others
// have seen them, and no look after that writes.
func TestBoard_OldDoubtsAreTakenOut(t *testing.T) {
	for _, doubts := range []int{manyDoubts - 1, manyDoubts, maxDoubts} {
		synctest.Test(t, func(t *testing.T) {
			stored := new(one)
			a, b := NewBoard("news", zap.NewNop()), NewBoard("news", zap.NewNop())
			heard := 0
			look := func() (writes int) {
				t.Helper()
				for _, board := range []*Board{a, b} {
					before := string(stored.value)
					fresh, _, err := board.Look(t.Context(), stored)
					if err != nil {
						t.Fatal(err)
					}
					if board == b {
						heard += len(fresh)
					}
					if string(stored.value) != before {
						writes++
					}
				}
				return writes
			}
			left := func() int { return strings.Count(string(stored.value), `"doubt"`) }
			look()
			for i := range doubts {
				a.Add(Entry{Kind: Doubt, Key: fmt.Sprintf("%016x", i), Status: "fails"})
			}
			began := time.Now()
			for time.Since(began) < doubtAge {
				look()
				if left() != doubts {
					t.Fatalf("after %s, %d of %d doubts are left", time.Since(began), left(), doubts)
				}
				time.Sleep(time.Second)
			}
			if heard != doubts {
				t.Errorf("the other member heard %d doubts, want %d", heard, doubts)
			}
			writes := look()
			if want := doubts * boolInt(doubts < manyDoubts); left() != want || writes != 1-boolInt(doubts < manyDoubts) {
				t.Errorf("%d of %d doubts are left after %d writes, want %d", left(), doubts, writes, want)
			}
			for range 100 {
				time.Sleep(time.Second)
				if look() > 0 {
					t.Fatal("a look writes although there is nothing new")
				}
			}
			a.Add(Entry{Kind: Member, Key: strings.Repeat("0", 16)})
			if look(); left() > 0 {
				t.Errorf("%d old doubts are left after the next write", left())
			}
		})
	}
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}
