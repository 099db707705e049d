// SPDX-License-Identifier: Apache-2.0

package limits

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// FailOpenRange is what messages call when health is ignored.
const FailOpenRange = "none_up, off, a " + PercentRange + ", like 50%, or a " + CountRange + ", like 2"

// FailOpen reads when health is ignored: the share of upstreams that must serve, or how
// many of them; both are 0 for none_up and off.
func FailOpen(text string) (percent float64, number int, err error) {
	if text == "none_up" || text == "off" {
		return 0, 0, nil
	}
	if percent, ok := parsePercent(text); ok {
		return percent, 0, nil
	}
	if number, err := strconv.Atoi(text); err == nil && number >= 1 {
		return 0, number, nil
	}
	return 0, 0, fmt.Errorf("fail_open must be %s; got '%s'", FailOpenRange, text)
}

// SpillRange is what messages call the share of the weight below which the next group
// joins.
const SpillRange = "a percentage above 0% and up to 100%, like 70%"

// Spill reads the share below which the next group joins, in percent.
func Spill(text string) (percent float64, err error) {
	percent, ok := parsePercent(text)
	if !ok || percent == 0 {
		return 0, fmt.Errorf("spill must be %s; got '%s'", SpillRange, text)
	}
	return percent, nil
}

// Limit returns an error if an upstream cannot get so many requests at once.
func Limit(option string, requests int) error { return limit.check(option, requests) }

// ParseLimit reads how many requests an upstream gets at once.
func ParseLimit(text string) (int, error) { return limit.parse(text) }

// QueueTimeout returns an error if requests cannot wait that long for an upstream.
func QueueTimeout(timeout time.Duration) error { return queueTimeout.check(timeout) }

// ParseQueueTimeout reads how long requests wait for an upstream.
func ParseQueueTimeout(text string) (time.Duration, error) { return queueTimeout.parse(text) }

// QueueLength returns an error if so many requests cannot wait.
func QueueLength(length int) error { return queueLength.check("queue: length", length) }

// ParseQueueLength reads how many requests can wait.
func ParseQueueLength(text string) (int, error) { return queueLength.parse(text) }

// MaxAge returns an error if clients cannot keep a cookie that long.
func MaxAge(age time.Duration) error { return stickyMaxAge.check(age) }

// ParseMaxAge reads how long clients keep a cookie.
func ParseMaxAge(text string) (time.Duration, error) { return stickyMaxAge.parse(text) }

// cookieSigns are what the name of a cookie can have beside letters and digits: it is a
// token of RFC 6265.
const cookieSigns = "!#$%&'*+-.^_`|~"

// securePrefixes are those of names of cookies that need the attribute Secure.
var securePrefixes = []string{"__Secure-", "__Host-", "__Http-"}

// CookieName returns an error if a text cannot be the name of the cookie of sessions.
func CookieName(name string) error {
	other := func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune(cookieSigns, r)
	}
	if name == "" || len(name) > MaxName || strings.ContainsFunc(name, other) {
		return fmt.Errorf("sticky: the name of the cookie must be of letters, digits and %s only, and of %d bytes at most, like lb; got '%s'", cookieSigns, MaxName, name)
	}
	if name == "off" {
		return errors.New("sticky: off would be the name of the cookie; leave sticky out to bind no clients, or use another name")
	}
	for _, prefix := range securePrefixes {
		if len(name) >= len(prefix) && strings.EqualFold(name[:len(prefix)], prefix) {
			return fmt.Errorf("sticky: the name of the cookie must not begin with %s: browsers would drop such a cookie wherever it is set without TLS; got '%s'", prefix, name)
		}
	}
	return nil
}
