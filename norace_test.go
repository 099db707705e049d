// SPDX-License-Identifier: Apache-2.0

//go:build !race

package alive

// manyRequests is how many requests a test of many sends.
const (
	manyRequests = 100_000
	raceDetector = false
)
