// SPDX-License-Identifier: Apache-2.0

// Package testkit helps tests: upstreams that fail in a chosen way, a Caddy inside the
// test process, its clients, its admin API, its log and its events, and polling with a
// deadline.
//
// It does not import the packages that it helps to test. A test that runs Caddy imports
// the root package and Caddy's standard modules itself.
package testkit
