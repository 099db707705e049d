// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
)

// A label is what operators see of a check: its name, or what its kind says of
// itself with the options that tell checks of one upstream apart. Everything in it
// is shown as it is written, so placeholders stay, and what they stand for does not
// show.

// defaultLabel returns the label of a check without a name. The probe must not be
// loaded yet.
func (c *HealthCheck) defaultLabel() string {
	label := kindLabel(c.resolved.Kind, c.ProbeRaw)
	if c.Address != "" {
		label += " address " + c.Address
	}
	if c.Port != 0 {
		label += " port " + strconv.Itoa(c.Port)
	}
	return label
}

// kindLabel returns what a kind of probe says of its own options.
func kindLabel(kind string, raw json.RawMessage) string {
	info, err := caddy.GetModule("alive.probes." + kind)
	if err != nil {
		return kind
	}
	// one that is not provisioned has its options as they are written
	written := info.New()
	if err := json.Unmarshal(raw, written); err != nil {
		return kind // to load it is an error, too
	}
	if s, ok := written.(fmt.Stringer); ok {
		return strings.ToValidUTF8(s.String(), "\uFFFD")
	}
	return kind
}

// labelChecks gives each check its label. Default labels that several checks have
// are numbered in the order of the config.
func labelChecks(checks []*HealthCheck) error {
	taken := make(map[string]int)
	for i, c := range checks {
		if c.Name == "" {
			continue
		}
		if other, given := taken[c.Name]; given {
			return fmt.Errorf("checks: position %d has the name of position %d: %s", i, other, c.Name)
		}
		taken[c.Name], c.resolved.Label = i, c.Name
	}
	for i, c := range checks {
		if c.Name != "" {
			continue
		}
		label := c.resolved.Label
		for n := 2; ; n++ {
			if _, given := taken[c.resolved.Label]; !given {
				break
			}
			c.resolved.Label = fmt.Sprintf("%s #%d", label, n)
		}
		taken[c.resolved.Label] = i
	}
	return nil
}

// hasNameOf reports whether another check has the same name, if it has any.
func (c *HealthCheck) hasNameOf(other *HealthCheck) bool { return c.Name != "" && c.Name == other.Name }
