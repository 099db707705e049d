// SPDX-License-Identifier: Apache-2.0

// Package witness judges upstreams by what happens to the requests that they get. It knows
// neither Caddy nor how requests travel.
package witness

import (
	"net/http"
	"slices"
	"time"
)

// Settings are what is configured about what the traffic says of upstreams. Use
// [DefaultSettings] for the defaults.
type Settings struct {
	// Off says that nothing which happens to requests counts.
	Off bool
	// Status are the statuses of answers that accuse an upstream. Nil is the default:
	// 502, 504, and 503 without a Retry-After field. An empty slice is none.
	Status []StatusRange
	// Stall is how long requests may wait without a first byte from an upstream. 0
	// follows the pace of the upstream, and below 0 is off.
	Stall time.Duration

	// EjectAfter is how many outcomes in a row eject an upstream, 0 for never.
	EjectAfter int
	// EjectFor is how long the first ejection lasts, and EjectLongest how long one lasts
	// at most.
	EjectFor, EjectLongest time.Duration
	// EjectShare is how much of the weight of a group may be ejected, from 0 to 1.
	EjectShare float64
}

// StatusRange is a range of statuses of answers. Both ends are included.
type StatusRange struct{ First, Last int }

// DefaultSettings returns the defaults.
func DefaultSettings() Settings {
	return Settings{EjectAfter: 5, EjectFor: 30 * time.Second, EjectLongest: 5 * time.Minute, EjectShare: 0.3}
}

// Accuses reports whether an answer with this status accuses the upstream.
func (s *Settings) Accuses(status int, header http.Header) bool {
	if status < 100 { // it is none (RFC 9110, section 15), and Caddy cannot pass it on
		return true
	}
	if s.Status != nil {
		return slices.ContainsFunc(s.Status, func(r StatusRange) bool { return r.First <= status && status <= r.Last })
	}
	switch status {
	case http.StatusBadGateway, http.StatusGatewayTimeout:
		return true
	case http.StatusServiceUnavailable: // with the field, an upstream says when to come back
		return header.Get("Retry-After") == ""
	default:
		return false
	}
}
