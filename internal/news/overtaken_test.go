// SPDX-License-Identifier: Apache-2.0

package news

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
)

// one is a storage with one value.
type one struct{ value []byte }

func (s *one) Load(context.Context, string, int, bool) ([]byte, error) { return s.value, nil }

func (s *one) IsTooLong(error) bool { return false }

func (s *one) Store(_ context.Context, _ string, value []byte) error {
	s.value = value
	return nil
}

// An entry that was seen in the news, and is then overwritten by a member that had read them
// before, is written again.
func TestBoard_OvertakenEntryIsWrittenAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stored := new(one)
		board := NewBoard("news", zap.NewNop())
		look := func() (missed bool) {
			t.Helper()
			_, missed, err := board.Look(t.Context(), stored)
			if err != nil {
				t.Fatal(err)
			}
			return missed
		}
		look()
		before := stored.value
		key := strings.Repeat("0", 64)
		board.Add(Entry{Kind: Setting, Key: key})
		look()
		look() // the entry is there
		stored.value = before
		look()
		if !strings.Contains(string(stored.value), key) {
			t.Errorf("the entry is lost: %s", stored.value)
		}
		time.Sleep(settleTime)
		look()
		stored.value = before
		look()
		if strings.Contains(string(stored.value), key) {
			t.Errorf("the entry is still written: %s", stored.value)
		}
	})
}

// Members that find no news repair them, and notice that they may have missed some. If they
// find none again and again, they do so only a few times each half minute.
func TestBoard_RepairsAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stored := new(one)
		board := NewBoard("news", zap.NewNop())
		repairs := 0
		for i := range 100 {
			stored.value = nil
			_, missed, err := board.Look(t.Context(), stored)
			if err != nil {
				t.Fatal(err)
			}
			if stored.value != nil {
				repairs++
			}
			if missed != (i > 0 && stored.value != nil) {
				t.Errorf("look %d: missed %v, repaired %v", i, missed, stored.value != nil)
			}
			time.Sleep(time.Second)
		}
		if want := maxRepairs * 4; repairs != want { // in 100 s
			t.Errorf("%d repairs, want %d", repairs, want)
		}
	})
}
