// SPDX-License-Identifier: Apache-2.0

// Package test has the tests of a running Caddy. They use what a user sees: the config,
// HTTP, the admin API, the command, metrics, events and the log. They know nothing of
// what is inside the plugin, with one exception that says so.
package test
