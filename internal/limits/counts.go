// SPDX-License-Identifier: Apache-2.0

package limits

import (
	"fmt"
	"strconv"
)

// countRange is the range of an option that is a count, with an example.
type countRange struct {
	option, example string
	most            int
	canBeOff        bool
}

var (
	retries     = countRange{"retries", "2", MaxRetries, true}
	ejectAfter  = countRange{"eject", "5", MaxEjectAfter, true}
	probers     = countRange{"probers", "3", MaxProbers, true}
	limit       = countRange{"max_requests", "20", MaxLimit, false}
	queueLength = countRange{"queue: length", strconv.Itoa(DefaultQueueLength), MaxQueueLength, false}
)

// String is what messages call such a count, after "a" or "one".
func (r countRange) String() string { return fmt.Sprintf("whole number from 1 to %d", r.most) }

// check returns an error if a count in JSON is neither in the range nor off.
func (r countRange) check(option string, count int) error {
	if count >= 1 && count <= r.most || r.canBeOff && count == Off {
		return nil
	}
	off := ""
	if r.canBeOff {
		off = fmt.Sprintf(", or %d for off", Off)
	}
	return fmt.Errorf("%s must be a %s, like %s%s; got %d", option, r, r.example, off, count)
}

// parse reads a count of a Caddyfile, or off.
func (r countRange) parse(text string) (int, error) {
	if r.canBeOff && text == "off" {
		return Off, nil
	}
	count, err := strconv.Atoi(text)
	if err != nil || count < 1 || count > r.most {
		allowed := "a " + r.String()
		if r.canBeOff {
			allowed = "off or " + allowed
		}
		return 0, fmt.Errorf("%s must be %s, like %s; got '%s'", r.option, allowed, r.example, text)
	}
	return count, nil
}
