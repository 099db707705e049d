// SPDX-License-Identifier: Apache-2.0

package probe

import "github.com/caddy-alive/caddy-alive/internal/limits"

// matches reports whether any of the ranges has the code in it.
func matches(ranges []limits.StatusRange, code int) bool {
	for _, r := range ranges {
		if r.First <= code && code <= r.Last {
			return true
		}
	}
	return false
}
