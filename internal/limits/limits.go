// SPDX-License-Identifier: Apache-2.0

// Package limits has the ranges of options and what is said about a value that is out
// of its range: once, for the Caddyfile, JSON, the admin API and the command. It knows
// no option's meaning, and has no state.
package limits

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"regexp"
	"slices"
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
	MaxDuration     = 24 * time.Hour
)

const (
	// DefaultSyncInterval is how often the members of a fleet read the storage, if
	// the config does not say.
	DefaultSyncInterval = 2 * time.Second
	// StorageTimeout is how long a change or a start waits for the storage at most.
	StorageTimeout = 2 * time.Second
)

const (
	// MaxWeight is the largest weight of an upstream.
	MaxWeight = 256
	// MaxName is the longest name of a pool or a check, in bytes.
	MaxName = 200
)

// Duration returns an error if the value of an option is out of its range.
func Duration(option string, value, shortest, longest time.Duration) error {
	switch {
	case value < 0:
		return fmt.Errorf("%s must not be negative", option)
	case value < shortest:
		return fmt.Errorf("%s must be at least %s; got %s%s", option, shortest, value, missingUnit(value))
	case value > longest:
		return fmt.Errorf("%s must not be longer than %s", option, longest)
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
	return ParseDuration("hold", text, "off or a duration above 0, like 2s", MinHold, math.MaxInt64)
}

// RampWindow returns an error if a slow start cannot take that long.
func RampWindow(window time.Duration) error {
	if window <= 0 || window > MaxDuration {
		return fmt.Errorf("slow_start needs a window above 0 and not longer than %s", MaxDuration)
	}
	return Duration("slow_start: window", window, MinRampWindow, MaxDuration)
}

// ParseRampWindow reads how long a slow start takes.
func ParseRampWindow(text string) (time.Duration, error) {
	window, err := ParseDuration("the window of slow_start", text, "a duration above 0, like 30s", 0, math.MaxInt64)
	if err != nil {
		return 0, err
	}
	return window, RampWindow(window)
}

// SyncInterval returns an error if a fleet would ask its storage too often, or hardly
// ever.
func SyncInterval(interval time.Duration) error {
	if interval < MinSyncInterval || interval > MaxDuration {
		return fmt.Errorf("sync_interval must be from %s to %s; got %s%s", MinSyncInterval, MaxDuration, interval, missingUnit(interval))
	}
	return nil
}

// ParseSyncInterval reads how often the members of a fleet read the storage.
func ParseSyncInterval(text string) (time.Duration, error) {
	interval, err := caddy.ParseDuration(text)
	if err != nil {
		return 0, fmt.Errorf("sync_interval must be a duration, like 2s; got '%s'", text)
	}
	return interval, SyncInterval(interval)
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
		return 0, fmt.Errorf("%s must be a percentage from 0%% to 100%%, like 10%%; got '%s'", option, text)
	}
	return percent, nil
}

func parsePercent(text string) (percent float64, ok bool) {
	number, ok := strings.CutSuffix(text, "%")
	percent, err := strconv.ParseFloat(number, 64)
	return percent, ok && err == nil && percent >= 0 && percent <= 100 // NaN is not
}

// FailOpen reads when health is ignored: the share of upstreams that must serve, 0 for
// none_up and off.
func FailOpen(text string) (percent float64, err error) {
	if text == "none_up" || text == "off" {
		return 0, nil
	}
	percent, ok := parsePercent(text)
	if !ok {
		return 0, fmt.Errorf("fail_open must be none_up, off or a percentage from 0%% to 100%%, like 50%%; got '%s'", text)
	}
	return percent, nil
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
		return 0, fmt.Errorf("%s must be a whole number from 1 on; got '%s'", option, text)
	}
	return count, nil
}

// IsWeight reports whether a number can be a weight.
func IsWeight(number int) bool { return number >= 0 && number <= MaxWeight }

// WeightRange is how messages describe a weight.
var WeightRange = fmt.Sprintf("a whole number from 0 to %d", MaxWeight)

// Weight reads a weight.
func Weight(text string) (number int, ok bool) {
	number, err := strconv.Atoi(text)
	return number, err == nil && IsWeight(number)
}

// Name returns an error if a text cannot be the name of a pool or a check.
func Name(name string) error {
	if len(name) > MaxName || strings.ContainsFunc(name, unicode.IsControl) || !utf8.ValidString(name) {
		return fmt.Errorf("name must be one line of %d bytes at most", MaxName)
	}
	return nil
}

// ShortName shortens a text that is too long for a name. Different texts stay different.
func ShortName(name string) string {
	if len(name) <= MaxName {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	end := fmt.Sprintf("… #%x", sum[:4])
	return strings.ToValidUTF8(name[:MaxName-len(end)], "") + end
}

// fleetName is what can be part of a key of any storage.
var fleetName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// Fleet returns an error if a text cannot be the name of a fleet.
func Fleet(name string) error {
	if !fleetName.MatchString(name) {
		return fmt.Errorf("fleet must be a name of up to 64 letters, digits, dots, dashes and underscores that begins with a letter or digit; got '%s'", name)
	}
	return nil
}

// Port reads the port to probe.
func Port(text string) (int, error) {
	port, err := strconv.Atoi(text)
	if err != nil || port < 1 || port > math.MaxUint16 {
		return 0, fmt.Errorf("port must be a whole number from 1 to %d; got '%s'", math.MaxUint16, text)
	}
	return port, nil
}

// ProxyProtocol returns an error unless a text is a version of the PROXY protocol, or off.
func ProxyProtocol(version string) error {
	if !slices.Contains([]string{"off", "v1", "v2"}, version) {
		return fmt.Errorf("proxy_protocol must be off, v1 or v2; got '%s'", version)
	}
	return nil
}
