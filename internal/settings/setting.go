// SPDX-License-Identifier: Apache-2.0

package settings

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-alive/caddy-alive/internal/limits"
)

// Mode is what operators want of the upstream at an address.
type Mode string

// The modes. They have no type, so that they compare with the rows of the list.
const (
	Ready       = "ready"       // requests while it is alive
	Drain       = "drain"       // no new requests while another upstream serves
	Maintenance = "maintenance" // no requests and no probes
)

// Valid reports whether m is one of the modes.
func (m Mode) Valid() bool { return m == Ready || m == Drain || m == Maintenance }

// Setting is what was set at run time for one address. Each part has the time of its
// last change. Where two settings meet, the newer part wins. So all that share a
// storage come to agree, in whatever order they write.
//
// A Setting does not change once others can see it. All methods can be called on nil,
// which is a setting that changes nothing.
type Setting struct {
	Address string            `json:"address"`
	Mode    Mode              `json:"mode"`
	Rebind  bool              `json:"rebind,omitempty"`  // of the mode drain: clients that are bound to it move, too
	Changed time.Time         `json:"changed"`           // of both
	Weights map[string]Weight `json:"weights,omitempty"` // by pool

	// Left is when the last pool lost the address, and Returned when one had it again.
	// Not kept in a fleet, in which another instance may have the address.
	Left     time.Time `json:"left,omitzero"`
	Returned time.Time `json:"returned,omitzero"`
}

// Weight is a weight that was set in place of the one in the config.
type Weight struct {
	Weight  *int      `json:"weight"` // nil: that of the config again
	Changed time.Time `json:"changed"`
}

// ModeNow returns the mode: ready if none was set.
func (s *Setting) ModeNow() Mode {
	if s == nil || s.Mode == "" {
		return Ready
	}
	return s.Mode
}

// RebindNow reports whether the upstream drains, and clients that are bound to it are to
// move to others.
func (s *Setting) RebindNow() bool { return s.ModeNow() == Drain && s.Rebind }

// WeightIn returns the weight in a pool, or that of the config if none was set.
func (s *Setting) WeightIn(pool string, configured int) int {
	if s == nil || s.Weights[pool].Weight == nil {
		return configured
	}
	return *s.Weights[pool].Weight
}

// Fields describe the setting in a log line.
func (s *Setting) Fields() []zap.Field {
	fields := []zap.Field{zap.String("upstream", s.Address), zap.String("mode", string(s.ModeNow()))}
	if s.RebindNow() {
		fields = append(fields, zap.Bool("rebind", true))
	}
	for _, pool := range slices.Sorted(maps.Keys(s.Weights)) {
		if weight := s.Weights[pool].Weight; weight != nil {
			fields = append(fields, zap.String("pool", pool), zap.Int("weight", *weight))
		}
	}
	return fields
}

// Newest returns when a mode or weight was last changed.
func (s *Setting) Newest() time.Time {
	newest := s.Changed
	for _, w := range s.Weights {
		newest = later(newest, w.Changed)
	}
	return newest
}

// latest returns the latest of all its times.
func (s *Setting) latest() time.Time { return later(s.Newest(), later(s.Left, s.Returned)) }

// AbsentSince returns since when no pool has the address, the zero time if one has it.
func (s *Setting) AbsentSince() time.Time {
	if s.Left.After(s.Returned) {
		return s.Left
	}
	return time.Time{}
}

// IsDefault reports whether the setting changes nothing.
func (s *Setting) IsDefault() bool {
	if s == nil {
		return true
	}
	for _, w := range s.Weights {
		if w.Weight != nil {
			return false
		}
	}
	return s.ModeNow() == Ready
}

// OrphanedWeight returns the newest weight of the pools that are gone, and its pool;
// an empty pool if there is none.
func (s *Setting) OrphanedWeight(isGone func(pool string) bool) (pool string, newest Weight) {
	for _, name := range slices.Sorted(maps.Keys(s.Weights)) {
		if w := s.Weights[name]; isGone(name) && (pool == "" || w.Changed.After(newest.Changed)) {
			pool, newest = name, w
		}
	}
	return pool, newest
}

// Only returns the setting with the weights of some pools only.
func (s *Setting) Only(isWanted func(pool string) bool) *Setting {
	only := *s
	only.Weights = maps.Clone(s.Weights)
	maps.DeleteFunc(only.Weights, func(pool string, _ Weight) bool { return !isWanted(pool) })
	return &only
}

// rank decides between weights that were set at the same time.
func (w Weight) rank() int {
	if w.Weight == nil {
		return -1
	}
	return *w.Weight
}

// Merge returns the newer parts of both settings, either of which can be nil. If two
// parts are equally new, every instance takes the same one.
func Merge(a, b *Setting) *Setting {
	if a == nil || b == nil {
		return cmp.Or(a, b)
	}
	m := *a
	if cmp.Or(b.Changed.Compare(a.Changed), strings.Compare(string(b.Mode), string(a.Mode)), compareBools(b.Rebind, a.Rebind)) > 0 {
		m.Mode, m.Rebind, m.Changed = b.Mode, b.Rebind, b.Changed
	}
	m.Left, m.Returned = later(a.Left, b.Left), later(a.Returned, b.Returned)
	m.Weights = maps.Clone(a.Weights)
	for pool, w := range b.Weights {
		if m.Weights == nil {
			m.Weights = make(map[string]Weight)
		}
		known, ok := m.Weights[pool]
		if !ok || cmp.Or(w.Changed.Compare(known.Changed), cmp.Compare(w.rank(), known.rank())) > 0 {
			m.Weights[pool] = w
		}
	}
	return &m
}

// compareBools is 1 if only a is true, and -1 if only b is.
func compareBools(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	default:
		return -1
	}
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// equal reports whether both say the same.
func (s *Setting) equal(other *Setting) bool {
	return s.Address == other.Address && s.Mode == other.Mode && s.Rebind == other.Rebind && s.Changed.Equal(other.Changed) &&
		s.Left.Equal(other.Left) && s.Returned.Equal(other.Returned) &&
		maps.EqualFunc(s.Weights, other.Weights, func(a, b Weight) bool {
			return a.Changed.Equal(b.Changed) && (a.Weight == nil) == (b.Weight == nil) && (a.Weight == nil || *a.Weight == *b.Weight)
		})
}

// parse reads what a storage holds, which may be anything.
func parse(text []byte) (*Setting, error) {
	s := new(Setting)
	if err := json.Unmarshal(text, s); err != nil {
		return nil, err
	}
	if s.Address == "" {
		return nil, errors.New("it names no address")
	}
	if s.Mode != "" && !s.Mode.Valid() {
		return nil, fmt.Errorf("it has the unknown mode %q", s.Mode)
	}
	for pool, w := range s.Weights {
		if w.Weight != nil && !limits.IsWeight(*w.Weight) {
			return nil, fmt.Errorf("it has the weight %d for %s", *w.Weight, pool)
		}
	}
	return s, nil
}
