// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"slices"
	"testing"
	"testing/synctest"
)

// A pool that ignores health leaves with its config: the one that runs on tells so. At
// the end of the last config, which is no end of the trouble, nothing is told, so that a
// stop does not warn of an event that was dropped.
func TestEvents_FailOpenAtTheEndOfAConfig(t *testing.T) {
	for _, replaced := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			var told []string
			last := startEventful(t, &told, true, nil)
			s := &Selection{app: last.App, pool: t.Name()}
			if err := s.joinPool(); err != nil {
				t.Fatal(err)
			}
			s.tellFailOpen(fine, lastResort)
			if replaced {
				startEventful(t, &told, true, nil)
			}
			synctest.Wait()
			if err := s.leavePool(); err != nil {
				t.Error(err)
			}
			synctest.Wait()
			want := []string{"fail_open"}
			if replaced {
				want = append(want, "fail_open")
			}
			if !slices.Equal(told, want) {
				t.Errorf("replaced %t: told %v, want %v", replaced, told, want)
			}
		})
	}
}
