// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"fmt"
	"time"
)

// The shortest and longest that durations can be. Shorter ones are mistakes, most
// often a number without its unit.
const (
	minInterval   = 10 * time.Millisecond
	minTimeout    = time.Millisecond
	minHold       = time.Millisecond
	minRampWindow = 10 * time.Millisecond
	maxDuration   = 24 * time.Hour
)

// validateDuration reports why the value of an option is out of its range, if it is.
func validateDuration(option string, value, shortest, longest time.Duration) error {
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
