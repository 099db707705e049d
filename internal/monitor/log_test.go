// SPDX-License-Identifier: Apache-2.0

package monitor

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/caddy-alive/caddy-alive/internal/health"
)

// Each cause is named once a minute, whichever of many probes finds it.
func TestInconclusiveWarning_OncePerMinuteAndCause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.WarnLevel)
		limit := new(warningLimit)
		for range 3 {
			for range 5 {
				for i, why := range []*health.InconclusiveError{
					{Late: time.Second},
					{Shortage: "too many open files", Reason: "socket: too many open files"},
					{Shortage: "no buffer space available", Reason: "x"},
				} {
					log := upstreamLog{zap.New(core), limit, [2]zap.Field{zap.String("upstream", fmt.Sprintf("a:%d", i)), zap.String("check", "tcp")}}
					log.inconclusive(why)
				}
			}
			got := logs.TakeAll()
			if len(got) != 3 {
				t.Fatalf("got %d lines, want one for each cause: %+v", len(got), got)
			}
			if fields := got[0].ContextMap(); fields["late_by"] != time.Second || fields["upstream"] != "a:0" {
				t.Errorf("late: got the fields %v", fields)
			}
			if fields := got[1].ContextMap(); fields["shortage"] != "too many open files" || fields["reason"] != "socket: too many open files" {
				t.Errorf("shortage: got the fields %v", fields)
			}
			time.Sleep(time.Minute)
		}
	})
}
