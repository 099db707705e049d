// SPDX-License-Identifier: Apache-2.0

// Package limits has the ranges of options and what is said about a value that is out
// of its range: once, for the Caddyfile, JSON, the admin API and the command. It knows
// no option's meaning, and has no state.
package limits

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/caddyserver/caddy/v2"
)

// The shortest and longest durations of options. Shorter ones are mistakes, most often
// a number without its unit.
const (
	MinInterval     = 10 * time.Millisecond
	MinTimeout      = time.Millisecond
	MinHold         = time.Millisecond
	MinRampWindow   = 10 * time.Millisecond
	MinSyncInterval = 100 * time.Millisecond
	MinStall        = 10 * time.Millisecond
	MinEjection     = 10 * time.Millisecond
	MinQueueTimeout = time.Millisecond
	MinMaxAge       = time.Second
	MinWait         = time.Second
	MaxDuration     = 24 * time.Hour
	// MaxMaxAge is how long browsers keep a cookie at most.
	MaxMaxAge = 400 * 24 * time.Hour
)

// DefaultSyncInterval is how often the members of a fleet look for news, if the config does
// not say.
const DefaultSyncInterval = time.Second

const (
	// MaxWeight is the largest weight of an upstream.
	MaxWeight = 256
	// MaxRetries is how often a request goes to another upstream at most.
	MaxRetries = 100
	// MaxLimit is the largest limit of requests that an upstream gets at once.
	MaxLimit = 1_000_000
	// MaxQueueLength is how many requests can wait for a pool at most.
	MaxQueueLength = 100_000
	// DefaultQueueLength is how many, if the config does not say.
	DefaultQueueLength = 1000
	// MaxProbers is how many members of a fleet probe an upstream at its interval at most.
	MaxProbers = 1000
	// MaxEjectAfter is the largest number of failures that ejects an upstream.
	MaxEjectAfter = 1000
	// Off stands for off where a config in JSON has a count.
	Off = -1
	// MaxName is the longest name of a pool, a check or a cookie, in bytes.
	MaxName = 200
)

// What messages call the values of options, after "a" or "one".
const (
	DurationRange = "duration above 0"
	PercentRange  = "percentage from 0% to 100%"
	CountRange    = "whole number of at least 1"
	// ProxyProtocols are the versions of the PROXY protocol, and off.
	ProxyProtocols = "off, v1 or v2"
)

// What messages call further values, after "a" or "one".
var (
	WeightRange     = fmt.Sprintf("whole number from 0 to %d", MaxWeight)
	RetriesRange    = retries.String()
	EjectAfterRange = ejectAfter.String()
	LimitRange      = limit.String()
	ProbersRange    = probers.String()
)

// Duration returns an error if the value of an option is out of its range.
func Duration(option string, value, shortest, longest time.Duration) error {
	switch {
	case value < 0:
		return fmt.Errorf("%s must not be negative", option)
	case value < shortest:
		return fmt.Errorf("%s must be at least %s; got %s%s", option, shortest, value, missingUnit(value))
	case value > longest:
		return fmt.Errorf("%s must not be longer than %s", option, inWords(longest))
	}
	return nil
}

// ParseDuration reads a duration of a Caddyfile, which is above 0 and in its range.
// Allowed describes the value, with an example, such as "a duration above 0, like 5s".
func ParseDuration(option, text, allowed string, shortest, longest time.Duration) (time.Duration, error) {
	value, err := caddy.ParseDuration(text)
	switch {
	case err != nil || value <= 0:
		return 0, fmt.Errorf("%s must be %s; got '%s'", option, allowed, text)
	case value < shortest:
		return 0, fmt.Errorf("%s must be at least %s; got '%s'", option, shortest, text)
	}
	return value, Duration(option, value, shortest, longest)
}

// Hold returns an error if requests cannot be held for that long. 0 is not at all.
func Hold(hold time.Duration) error {
	switch {
	case hold < 0:
		return errors.New("hold must not be negative; 0 holds no request")
	case hold == 0:
		return nil
	}
	return Duration("hold", hold, MinHold, math.MaxInt64)
}

// ParseHold reads how long requests are held, which can be off.
func ParseHold(text string) (time.Duration, error) {
	if text == "off" {
		return 0, nil
	}
	return ParseDuration("hold", text, "off or a "+DurationRange+", like 2s", MinHold, math.MaxInt64)
}

// durationRange is the range of an option that takes one duration, with an example.
type durationRange struct {
	option, example   string
	shortest, longest time.Duration
}

var (
	rampWindow   = durationRange{"slow_start: window", "30s", MinRampWindow, MaxDuration}
	syncInterval = durationRange{"sync_interval", "2s", MinSyncInterval, MaxDuration}
	fleetWait    = durationRange{"wait", "60s", MinWait, MaxDuration}
	ejectFor     = durationRange{"eject: for", "30s", MinEjection, MaxDuration}
	ejectLongest = durationRange{"eject: longest", "5m", MinEjection, MaxDuration}
	queueTimeout = durationRange{"queue: timeout", "10s", MinQueueTimeout, MaxDuration}
	stickyMaxAge = durationRange{"sticky: max_age", "24h", MinMaxAge, MaxMaxAge}
)

// errOutside returns the error for a value that is none, or out of the range.
func (r durationRange) errOutside(got, hint string) error {
	return fmt.Errorf("%s must be a duration from %s to %s, like %s; got '%s'%s", r.option, r.shortest, inWords(r.longest), r.example, got, hint)
}

// check returns an error if a value is out of the range.
func (r durationRange) check(value time.Duration) error {
	if value < r.shortest || value > r.longest {
		return r.errOutside(value.String(), missingUnit(value))
	}
	return nil
}

// parse reads a value of a Caddyfile.
func (r durationRange) parse(text string) (time.Duration, error) {
	value, err := caddy.ParseDuration(text)
	if err != nil || r.check(value) != nil {
		return 0, r.errOutside(text, "")
	}
	return value, nil
}

// RampWindow returns an error if a slow start cannot take that long.
func RampWindow(window time.Duration) error { return rampWindow.check(window) }

// ParseRampWindow reads how long a slow start takes.
func ParseRampWindow(text string) (time.Duration, error) { return rampWindow.parse(text) }

// SyncInterval returns an error if the members of a fleet would look for news too often, or
// hardly ever.
func SyncInterval(interval time.Duration) error { return syncInterval.check(interval) }

// ParseSyncInterval reads how often the members of a fleet look for news.
func ParseSyncInterval(text string) (time.Duration, error) { return syncInterval.parse(text) }

// Wait returns an error if a fleet cannot wait for that long.
func Wait(wait time.Duration) error { return fleetWait.check(wait) }

// ParseWait reads for how long a fleet waits at most.
func ParseWait(text string) (time.Duration, error) { return fleetWait.parse(text) }

// inWords returns a duration without units that are zero, and whole days in days.
func inWords(d time.Duration) string {
	if day := 24 * time.Hour; d > day && d%day == 0 {
		return fmt.Sprintf("%dd", d/day)
	}
	text := d.String()
	if before, ok := strings.CutSuffix(text, "m0s"); ok {
		text = before + "m"
	}
	if before, ok := strings.CutSuffix(text, "h0m"); ok {
		text = before + "h"
	}
	return text
}

// missingUnit says what to write, where a duration is so short that it must be a
// number without a unit.
func missingUnit(value time.Duration) string {
	const nanoseconds = "; a number without a unit is in nanoseconds in JSON: write "
	switch {
	case value <= 0 || value >= time.Millisecond:
		return ""
	case value < 100:
		return fmt.Sprintf(`%s"%ds"`, nanoseconds, value.Nanoseconds())
	default:
		return fmt.Sprintf(`%s"%dms"`, nanoseconds, value.Nanoseconds())
	}
}

// Percent returns the number before the sign in the value of an option: 10 for 10%.
func Percent(option, text string) (float64, error) {
	percent, ok := parsePercent(text)
	if !ok {
		return 0, fmt.Errorf("%s must be a %s, like 10%%; got '%s'", option, PercentRange, text)
	}
	return percent, nil
}

func parsePercent(text string) (percent float64, ok bool) {
	number, ok := strings.CutSuffix(text, "%")
	percent, err := strconv.ParseFloat(number, 64)
	return percent, ok && err == nil && percent >= 0 && percent <= 100 // NaN is not
}

// Count returns an error if the value of an option cannot be a count; 0 stands for its
// default.
func Count(option string, count int) error {
	if count < 0 {
		return fmt.Errorf("%s must not be negative", option)
	}
	return nil
}

// ParseCount reads a count of a Caddyfile, which is 1 at least.
func ParseCount(option, text string) (int, error) {
	count, err := strconv.Atoi(text)
	if err != nil || count < 1 {
		return 0, fmt.Errorf("%s must be a %s; got '%s'", option, CountRange, text)
	}
	return count, nil
}

// IsWeight reports whether a number can be a weight.
func IsWeight(number int) bool { return number >= 0 && number <= MaxWeight }

// ParseWeight reads a weight. Further is what an error adds to the range, such as "or
// null"; it can be empty.
func ParseWeight(text, further string) (int, error) {
	weight, err := strconv.Atoi(text)
	if err != nil || !IsWeight(weight) {
		return 0, ErrWeight(text, further)
	}
	return weight, nil
}

// ErrWeight returns the error for a text that cannot be a weight, as ParseWeight does.
func ErrWeight(got, further string) error {
	if further != "" {
		further = ", " + further
	}
	return fmt.Errorf("weight must be a %s%s; got '%s'", WeightRange, further, got)
}

// Name returns an error if a text cannot be the name of a pool or a check.
func Name(name string) error {
	if len(name) > MaxName || strings.ContainsFunc(name, unicode.IsControl) || !utf8.ValidString(name) {
		return fmt.Errorf("name must be one line of %d bytes at most", MaxName)
	}
	return nil
}

// fleetName is what can be part of a key of any storage. Names of members look alike.
var fleetName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// Fleet returns an error if a text cannot be the name of a fleet.
func Fleet(name string) error { return checkFleetName("fleet", name) }

// Member returns an error if a text cannot be the name of a member of a fleet.
func Member(name string) error { return checkFleetName("member", name) }

// Probers returns an error if so many members of a fleet cannot probe an upstream at its
// interval.
func Probers(count int) error { return probers.check("probers", count) }

// ParseProbers reads how many members of a fleet probe an upstream at its interval.
func ParseProbers(text string) (int, error) { return probers.parse(text) }

func checkFleetName(option, name string) error {
	if !fleetName.MatchString(name) {
		return fmt.Errorf("%s must be a name of up to 64 letters, digits, dots, dashes and underscores that begins with a letter or digit; got '%s'", option, name)
	}
	return nil
}

// PortRange is what messages call the port to probe, after "a".
var PortRange = fmt.Sprintf("whole number from 1 to %d, or such a number with a + before it that is added to the port of each upstream, like 8081 or +1000", math.MaxUint16)

// Port reads the port to probe: one, or a number that is added to the port of each
// upstream.
func Port(text string) (port int, added bool, err error) {
	digits, added := strings.CutPrefix(text, "+")
	number, err := strconv.ParseUint(digits, 10, 16)
	if err != nil || number == 0 {
		return 0, false, fmt.Errorf("port must be a %s; got '%s'", PortRange, text)
	}
	return int(number), added, nil
}

// ProxyProtocol returns an error unless a text is a version of the PROXY protocol, or off.
func ProxyProtocol(version string) error {
	if version != "off" && version != "v1" && version != "v2" {
		return fmt.Errorf("proxy_protocol must be %s; got '%s'", ProxyProtocols, version)
	}
	return nil
}
