// SPDX-License-Identifier: Apache-2.0

// Package limits has the ranges of options and what is said about a value that is out
// of its range: once, for the Caddyfile, JSON, the admin API and the command. It knows
// no option's meaning, and has no state.
package limits

import (
	"crypto/sha256"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
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
	// DefaultSyncInterval is how often the members of a fleet look at the storage, if
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

// SyncInterval returns an error if a fleet would ask its storage too often, or hardly
// ever.
func SyncInterval(interval time.Duration) error {
	if interval < MinSyncInterval || interval > MaxDuration {
		return fmt.Errorf("sync_interval must be from %s to %s; got %s%s", MinSyncInterval, MaxDuration, interval, missingUnit(interval))
	}
	return nil
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

// Percent returns the number before the sign: 10 for 10%.
func Percent(text string) (float64, error) {
	number, ok := strings.CutSuffix(text, "%")
	percent, err := strconv.ParseFloat(number, 64)
	if !ok || err != nil || !(percent >= 0 && percent <= 100) { // so that NaN is out, too
		return 0, fmt.Errorf("must be a percentage from 0%% to 100%%, like 10%%; got '%s'", text)
	}
	return percent, nil
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
