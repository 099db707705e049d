// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"encoding/json"
	"slices"
	"strings"

	_ "github.com/caddyserver/caddy/v2/modules/standard"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/monitor"
	"github.com/caddy-alive/caddy-alive/internal/view"
)

// watched returns the addresses that there are targets for.
func watched() (addresses []string) {
	for upstream := range monitor.Targets() {
		addresses = append(addresses, "target "+upstream)
	}
	return addresses
}

// statuses counts the targets of the addresses by their status.
func statuses(addresses ...string) map[health.Status]int {
	count := make(map[health.Status]int)
	for upstream, target := range monitor.Targets() {
		_, address, _ := strings.Cut(upstream, "/") // after the network
		if slices.Contains(addresses, address) {
			count[target.Status()]++
		}
	}
	return count
}

// is reports whether all checks of the address have the status.
func is(status health.Status, address string) bool {
	count := statuses(address)
	return count[status] > 0 && len(count) == 1
}

// parseEntries decodes the list of an answer.
func parseEntries(text []byte) (entries []view.Upstream, err error) {
	err = json.Unmarshal(text, &entries)
	return entries, err
}
