// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"fmt"
	"strings"
)

// ShopSite is a site over the upstreams that fill it, with a pool named shop. Like the
// other sites here it has no retries, which would hide requests that fail.
const ShopSite = `
http:// {
	reverse_proxy %s {
		lb_policy alive {
			name shop
			check http /healthz {
				interval 50ms
			}
			retries off
		}
	}
}`

// QuickCheck is a check that notices soon.
const QuickCheck = `check http /healthz {
	interval 200ms
	fast_interval 100ms
	timeout 5s
	passes 2
	fails 2
}`

// SingleCheck is a check that is not repeated while a test runs.
const SingleCheck = `check http /healthz {
	interval 10m
	fast_interval 10m
	timeout 5s
}`

// DynamicSite is a site with upstreams from a source.
func DynamicSite(source, check string, more ...string) string {
	return fmt.Sprintf("http:// {\nreverse_proxy {\ndynamic %s\nlb_policy alive {\n%s\nretries off\n}\n%s\n}\n}", source, check, strings.Join(more, "\n"))
}

// CheckedSite is a site that says its version, over these upstreams, with checks of
// the URIs and options for each.
func CheckedSite(version int, upstreams string, options string, uris ...string) string {
	var checks strings.Builder
	for _, uri := range uris {
		fmt.Fprintf(&checks, "check http %s {\n%s\n}\n", uri, options)
	}
	return fmt.Sprintf(`
http:// {
	header Version %d
	reverse_proxy %s {
		lb_policy alive {
			%s
			retries off
		}
	}
}`, version, upstreams, checks.String())
}
