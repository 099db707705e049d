// SPDX-License-Identifier: Apache-2.0

// Package telemetry has the counters, the Prometheus collector and the events of this
// module. It must not know configurations, handlers or apps: it counts what it is
// given, asks a [Source] how often it picked and how many requests wait, and asks the
// caller of [Register] for the rows of the gauges.
//
// Locks: that of [PoolCounters], then that of its counts of traffic. All others are leaves:
// those of its fail-open part, of its counts of refusals and of its limits of reports, and
// that of [Queue]. None is held while a Source, an event handler or a logger runs.
package telemetry
