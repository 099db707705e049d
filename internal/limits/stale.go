// SPDX-License-Identifier: Apache-2.0

package limits

import (
	"fmt"
	"time"

	"github.com/caddyserver/caddy/v2"
)

const (
	// MinStale is the shortest time for which the last answer of a dynamic source is used.
	MinStale = time.Second
	// DefaultStale is that time if the config does not say.
	DefaultStale = time.Hour
)

// StaleRange is what messages call how long the last answer of a source is used, after "a"
// or "one".
var StaleRange = fmt.Sprintf("duration from %s to %s, like 1h", MinStale, inWords(MaxDuration))

// Stale returns an error if the last answer of a source cannot be used for that long. 0 is
// not at all.
func Stale(stale time.Duration) error {
	if stale != 0 && (stale < MinStale || stale > MaxDuration) {
		return fmt.Errorf("stale must be a %s, or 0 for off; got '%s'%s", StaleRange, stale, missingUnit(stale))
	}
	return nil
}

// ParseStale reads how long the last answer of a source is used, which can be off.
func ParseStale(text string) (time.Duration, error) {
	if text == "off" {
		return 0, nil
	}
	stale, err := caddy.ParseDuration(text)
	if err != nil || stale == 0 || Stale(stale) != nil {
		return 0, fmt.Errorf("stale must be off or a %s; got '%s'", StaleRange, text)
	}
	return stale, nil
}
