// SPDX-License-Identifier: Apache-2.0

package view

import (
	"math"
	"time"
)

const (
	// TrendInterval is the time between two points of a trend.
	TrendInterval = 5 * time.Second
	// TrendLength is how many points a trend has at most: those of five minutes.
	TrendLength = 60
)

// Traffic is what requests to an upstream or a pool did lately.
type Traffic struct {
	// PerSecond is how many requests were sent in each of the last ten seconds, retries
	// included.
	PerSecond float64
	// Picks is how many were sent in the last minute, retries included, and Failures how many of
	// these failed in a way that accuses the upstream. With observe off, none does.
	Picks, Failures uint64
}

// Share is the part of the requests of the last minute that failed, from 0 to 1.
func (t Traffic) Share() float64 {
	if t.Picks == 0 {
		return 0
	}
	return min(1, float64(t.Failures)/float64(t.Picks))
}

// TrendPoint is the traffic at a moment of the last minutes: requests and failures a second.
type TrendPoint struct{ Requests, Failures float64 }

// rounded returns a rate as lists show it: with one digit after the point, and more if it is
// small.
func rounded(rate float64) float64 {
	if rate < 1 {
		return math.Round(rate*100) / 100
	}
	return math.Round(rate*10) / 10
}

// SetTraffic shows what requests to the upstream did lately.
func (u *Upstream) SetTraffic(t Traffic) {
	u.RequestsPerSecond, u.RecentFailures = rounded(t.PerSecond), t.Failures
}

// SetTraffic shows what requests to the pool did lately. The trend has its oldest point first.
func (p *Pool) SetTraffic(t Traffic, trend []TrendPoint) {
	p.RequestsPerSecond, p.RecentFailures, p.Trend = rounded(t.PerSecond), t.Failures, trend
	p.FailureShare = math.Round(t.Share()*10000) / 10000
}
