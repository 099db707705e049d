// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"fmt"
	"strconv"
	"strings"
)

// statusRange is a range of HTTP status codes, both ends included.
type statusRange struct{ first, last int }

// parseStatus parses a code (204), a class (2xx) or a range (200-399). Codes are from
// 200 to 599, because 1xx is never the status of a final answer.
func parseStatus(option, text string) (statusRange, error) {
	var r statusRange
	first, last, isRange := strings.Cut(text, "-")
	if class, ok := strings.CutSuffix(text, "xx"); ok {
		first, last = class+"00", class+"99"
	} else if !isRange {
		last = first
	}
	var err1, err2 error
	r.first, err1 = strconv.Atoi(first)
	r.last, err2 = strconv.Atoi(last)
	if err1 != nil || err2 != nil || len(first) != 3 || len(last) != 3 || r.first < 200 || r.last > 599 || r.first > r.last {
		return r, fmt.Errorf("%s must be a code from 200 to 599, a class like 2xx or a range like 200-399; got '%s'", option, text)
	}
	return r, nil
}

// matches reports whether any of the ranges has the code in it.
func matches(ranges []statusRange, code int) bool {
	for _, r := range ranges {
		if r.first <= code && code <= r.last {
			return true
		}
	}
	return false
}
