// SPDX-License-Identifier: Apache-2.0

package limits

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
)

// StatusRange is a range of HTTP status codes, both ends included.
type StatusRange struct{ First, Last int }

// ParseStatus parses a code (204), a class (2xx) or a range (200-399). Codes are from
// 200 to 599, because 1xx is never the status of a final answer.
func ParseStatus(option, text string) (StatusRange, error) {
	r, ok := parseStatus(text)
	if !ok {
		return r, fmt.Errorf("%s must be %s; got '%s'", option, statusForms, text)
	}
	return r, nil
}

const statusForms = "a code from 200 to 599, a class like 2xx or a range like 200-399"

func parseStatus(text string) (r StatusRange, ok bool) {
	first, last, isRange := strings.Cut(text, "-")
	if class, ok := strings.CutSuffix(text, "xx"); ok {
		first, last = class+"00", class+"99"
	} else if !isRange {
		last = first
	}
	var err1, err2 error
	r.First, err1 = strconv.Atoi(first)
	r.Last, err2 = strconv.Atoi(last)
	return r, err1 == nil && err2 == nil && len(first) == 3 && len(last) == 3 && r.First >= 200 && r.Last <= 599 && r.First <= r.Last
}

// ParseObserved parses a status that accuses an upstream, in the forms of ParseStatus.
func ParseObserved(text string) (StatusRange, error) {
	r, ok := parseStatus(text)
	if !ok {
		return r, fmt.Errorf("observe: status must be off alone, or %s; got '%s'", statusForms, text)
	}
	return r, nil
}

// StallRange is what messages call how long requests may wait.
var StallRange = fmt.Sprintf("auto, off or a duration from %s to %s, like 500ms", MinStall, inWords(MaxDuration))

// ParseStall reads how long requests may wait without a first byte: 0 for auto, and below
// 0 for off.
func ParseStall(text string) (time.Duration, error) {
	switch text {
	case "auto":
		return 0, nil
	case "off":
		return -1, nil
	}
	stall, err := caddy.ParseDuration(text)
	if err != nil || stall < MinStall || stall > MaxDuration {
		return 0, fmt.Errorf("observe: stall must be %s; got '%s'", StallRange, text)
	}
	return stall, nil
}

// Retries returns an error if a request cannot go to other upstreams that often.
func Retries(count int) error { return retries.check("retries", count) }

// ParseRetries reads how often a request goes to another upstream, or off.
func ParseRetries(text string) (int, error) { return retries.parse(text) }

// EjectAfter returns an error if so many failures cannot eject an upstream.
func EjectAfter(count int) error { return ejectAfter.check("eject: after", count) }

// ParseEjectAfter reads how many failures eject an upstream, or off.
func ParseEjectAfter(text string) (int, error) { return ejectAfter.parse(text) }

// EjectFor returns an error if a first ejection cannot take that long.
func EjectFor(base time.Duration) error { return ejectFor.check(base) }

// ParseEjectFor reads how long the first ejection takes.
func ParseEjectFor(text string) (time.Duration, error) { return ejectFor.parse(text) }

// EjectLongest returns an error if the longest ejection cannot take that long.
func EjectLongest(longest time.Duration) error { return ejectLongest.check(longest) }

// ParseEjectLongest reads how long an ejection takes at most.
func ParseEjectLongest(text string) (time.Duration, error) { return ejectLongest.parse(text) }

// EjectShareRange is what messages call how much may be ejected.
const EjectShareRange = "a percentage above 0% and up to 100%, like 30%"

// EjectShare reads how much of the weight of a group may be ejected, as a share.
func EjectShare(text string) (float64, error) {
	percent, ok := parsePercent(text)
	if !ok || percent == 0 {
		return 0, fmt.Errorf("eject: share must be %s; got '%s'; eject off ejects none", EjectShareRange, text)
	}
	return percent / 100, nil
}
