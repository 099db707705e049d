// SPDX-License-Identifier: Apache-2.0

// Package telemetry has the counters, the Prometheus collector and the events of this
// module. It must not know configurations, handlers or apps: it counts what it is
// given, asks a [Source] how often it picked, and asks the caller of [Register] for the
// rows of the gauges.
//
// Locks: those of [PoolCounters], of its fail-open part and of [Queue] are leaves. None
// is held while another is taken, or while a Source, an event handler or a logger runs.
package telemetry
