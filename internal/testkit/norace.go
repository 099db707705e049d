// SPDX-License-Identifier: Apache-2.0

//go:build !race

package testkit

const (
	// RaceDetector reports whether the race detector runs. Everything then takes
	// several times as long.
	RaceDetector = false
	// ManyRequests is how many requests a test of many sends.
	ManyRequests = 100_000
)
