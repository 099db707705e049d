// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"testing"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/view"
)

// The chart of the page has a place for each result that a target remembers.
func TestList_ShowsAllRememberedResults(t *testing.T) {
	if view.Remembered != health.Remembered {
		t.Errorf("the list shows %d results, targets remember %d", view.Remembered, health.Remembered)
	}
}
