// SPDX-License-Identifier: Apache-2.0

// Package shared lists the state that configs share: all usage pools of this module. A
// usage pool drops an entry with its last user, so an entry outlives a reload if the old
// and the new config both use it. The package knows neither keys nor values: the owner
// of a pool defines both, and no other package adds to the pool or deletes from it. The
// pools lock themselves. Their Range holds that lock: the function given to it must add
// and delete nothing.
package shared

import "github.com/caddyserver/caddy/v2"

var (
	// Targets are the upstreams that are probed. Key: the route, the probe and its
	// settings. Value: a health.Target. Owner: each monitor of a check of an upstream.
	// They outlive a config so that a reload that keeps a check keeps its status.
	Targets = caddy.NewUsagePool()

	// WarningLimits limit how often one cause is warned of, whichever probe finds it. There
	// is one entry. Owner: each monitor of a check of an upstream. It outlives a config so
	// that a reload repeats no warning.
	WarningLimits = caddy.NewUsagePool()

	// CheckCounters are the counters of checks. Key: address of the upstream and label of
	// the check. Value: a telemetry.CheckCounters. Owner: each monitor of a check of an
	// upstream. They outlive a config so that the counters do not go back at a reload.
	CheckCounters = caddy.NewUsagePool()

	// PoolCounters are the counters of pools. Key: name of the pool. Value: a
	// telemetry.PoolCounters. Owner: each handler with a pool of that name. They outlive a
	// config so that the counters do not go back at a reload.
	PoolCounters = caddy.NewUsagePool()

	// Witnesses are what the traffic says of upstreams. Key: name of the pool. Value: a
	// witness.Pool. Owner: each handler with a pool of that name. They outlive a config so
	// that a reload ends no suspicion and no ejection.
	Witnesses = caddy.NewUsagePool()

	// WatchLists are the addresses that requests have brought. Key: the source of the
	// upstreams. Value: a list of addresses, with when requests brought each. Owner: each
	// handler, also one whose upstreams the config lists: another policy can bring others.
	// They outlive a config so that a reload does not stop the probes until the next
	// requests.
	WatchLists = caddy.NewUsagePool()

	// Sources are what dynamic sources of upstreams have answered, and whether they fail. Key:
	// the config of the source, as JSON. Value: a source.memory. Owner: each handler whose
	// source is used beyond its failure. They outlive a config so that a reload does not
	// lose the last answer of a source that fails.
	Sources = caddy.NewUsagePool()

	// Slots are the requests at addresses that have a limit. Key: the dial address. Value: a
	// slots.Address. Owner: each upstream of a handler with limits. They outlive a config so
	// that requests that are in flight at a reload count in the new config, too.
	Slots = caddy.NewUsagePool()

	// Settings are the modes and weights set at run time. Key: where they are stored.
	// Value: the settings by address. Owner: the app of each config. They outlive a config
	// so that a reload does not lose what could not be stored.
	Settings = caddy.NewUsagePool()

	// Fleets are what is known of the members of fleets. Key: where the settings of the fleet
	// are stored. Value: a fleet.Fleet. Owner: the app of each config. They outlive a config
	// so that a reload is no new member, and ends no wait.
	Fleets = caddy.NewUsagePool()
)
