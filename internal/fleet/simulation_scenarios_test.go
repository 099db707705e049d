// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"testing"
	"time"
)

func TestSimulation_Idle(t *testing.T) {
	simulate(t, 100, 1000, func(s *simFleet) {
		before := s.probes.Load()
		s.sleep(60 * time.Second)
		t.Logf("%.2f", float64(s.probes.Load()-before)/60/1000)
	})
}
