// SPDX-License-Identifier: Apache-2.0

//go:build race

package alive

// manyRequests is how many requests a test of many sends: under the race
// detector everything takes several times as long.
const (
	manyRequests = 20_000
	raceDetector = true
)
