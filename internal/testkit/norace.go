// SPDX-License-Identifier: Apache-2.0

//go:build !race

package testkit

// RaceDetector reports whether the race detector runs. Everything then takes several
// times as long.
const RaceDetector = false
