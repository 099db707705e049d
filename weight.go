// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-alive/caddy-alive/internal/limits"
)

// Weight is a share of the requests, in proportion to the weights of the other
// upstreams: a whole number from 0 to 256, or a text with global placeholders, such
// as `{env.WEIGHT}`, that stand for one when the config is loaded.
type Weight string

// UnmarshalJSON reads a number, or a text with a placeholder.
func (w *Weight) UnmarshalJSON(data []byte) error {
	if number, err := strconv.Atoi(string(data)); err == nil {
		*w = Weight(strconv.Itoa(number))
		return nil
	}
	var text string
	if err := json.Unmarshal(data, &text); err != nil || !hasPlaceholder(text) {
		return fmt.Errorf(`a weight must be %s, or a text with a placeholder, like "{env.WEIGHT}"; got %s`, limits.WeightRange, data)
	}
	*w = Weight(text)
	return nil
}

// MarshalJSON writes a number as one, and a text with a placeholder as a text.
func (w Weight) MarshalJSON() ([]byte, error) {
	if number, err := strconv.Atoi(string(w)); err == nil {
		return strconv.AppendInt(nil, int64(number), 10), nil
	}
	return json.Marshal(string(w))
}

// resolve returns the number, or what is wrong with it.
func (w Weight) resolve() (int, error) {
	text, got := string(w), string(w)
	if hasPlaceholder(text) {
		// what it stands for may be secret, if it is the wrong one
		got = "what " + text + " stands for"
		var err error
		if text, err = caddy.NewReplacer().ReplaceOrErr(text, true, true); err != nil {
			return 0, fmt.Errorf("%v; only global placeholders, such as {env.*}, can stand for a weight", err)
		}
	}
	number, ok := limits.Weight(text)
	if !ok {
		return 0, fmt.Errorf("a weight must be %s; got %s", limits.WeightRange, got)
	}
	return number, nil
}

// parseWeight reads a weight of a Caddyfile.
func parseWeight(text string) (Weight, error) {
	if hasPlaceholder(text) {
		return Weight(text), nil // what it stands for is known when the config is loaded
	}
	number, ok := limits.Weight(text)
	if !ok {
		return "", fmt.Errorf("weight must be %s; got '%s'", limits.WeightRange, text)
	}
	return Weight(strconv.Itoa(number)), nil
}

// hasPlaceholder reports whether a text has what looks like a placeholder.
func hasPlaceholder(text string) bool {
	_, after, open := strings.Cut(text, "{")
	return open && strings.Contains(after, "}")
}
