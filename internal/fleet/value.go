// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/limits"
	"github.com/caddy-alive/caddy-alive/internal/news"
	"github.com/caddy-alive/caddy-alive/internal/view"
)

const (
	// valueVersion is that of the format.
	valueVersion = 1
	// maxValue bounds what a member stores, in bytes.
	maxValue = 16 << 10
	// maxTargets is of how many targets a member says that it has them.
	maxTargets = 2560
	// maxWithReasons is how many upstreams that are not up may be stored with their reasons.
	maxWithReasons = 20
	// maxReason bounds the reason why an upstream is not up, in bytes.
	maxReason = 160
	// maxText bounds addresses and labels that others store, in bytes.
	maxText = 512
	// maxAhead is how far ahead of this clock the times of others may be.
	maxAhead = 24 * time.Hour
	// maxEvery bounds the period that others store.
	maxEvery = time.Hour
	// maxLasts bounds for how many seconds an upstream is not up at others.
	maxLasts = 100 * 365 * 24 * 3600
	// maxRequests bounds the counts of others, so that sums of them are none that overflow.
	maxRequests = 1 << 30
)

// value is what a member stores of itself.
type value struct {
	Version int    `json:"v"`
	Fleet   string `json:"fleet"`
	ID      string `json:"id"`
	Name    string `json:"name"`
	// Seq grows with each write.
	Seq uint64 `json:"seq"`
	// Seconds is how often it writes at least.
	Seconds float64 `json:"every"`
	// Since is when the process began, and At when this was written, by its clock.
	Since time.Time `json:"since"`
	At    time.Time `json:"at"`
	// NotUp is what is not up there, and More how much of that did not fit.
	NotUp []notUp `json:"not_up"`
	More  int     `json:"more"`
	// Has is a hash of three bytes of each target that is probed there, sorted.
	Has string `json:"has,omitempty"`
	// Apart says that it disagrees with the probers about many targets, and probes all itself:
	// it is a prober for no other.
	Apart bool `json:"apart,omitempty"`
	// Acks are by the hash of the address.
	Acks map[string]ack `json:"acks,omitempty"`

	has    []byte            // Has, decoded
	hasSum uint64            // of has, which differs for different ones
	status map[uint64]string // NotUp, by the ID of the target
	down   map[string]bool   // upstreams that are down
}

// notUp is a target that is not up.
type notUp struct {
	Upstream string  `json:"u"`
	Check    string  `json:"c"`
	Status   string  `json:"s"`
	Why      string  `json:"why,omitempty"`
	For      float64 `json:"for"` // seconds
}

// ack is what a member says of an upstream that is waited for.
type ack struct {
	Revision time.Time `json:"rev"`
	InFlight int       `json:"in_flight"`
	Bound    int       `json:"bound,omitempty"`
	Gets     bool      `json:"gets"`
	Quiet    bool      `json:"quiet"`
}

// equal reports whether both say the same.
func (a ack) equal(other ack) bool {
	return a.Revision.Equal(other.Revision) && a.InFlight == other.InFlight && a.Bound == other.Bound && a.Gets == other.Gets && a.Quiet == other.Quiet
}

// every is how often the member writes at least.
func (v *value) every() time.Duration { return time.Duration(v.Seconds * float64(time.Second)) }

// targetID tells targets apart. It leaves out how an upstream is reached and how it is
// checked in detail: to take two for the same costs a probe, and decides nothing.
func targetID(upstream, check string) uint64 {
	return sum([]byte(upstream + "\x00" + check))
}

// sum returns a number that differs for different texts.
func sum(text []byte) uint64 {
	sum := sha256.Sum256(text)
	return binary.BigEndian.Uint64(sum[:])
}

// parseValue reads what is stored for a member, which may be anything.
func parseValue(text []byte, fleet, id string) (*value, error) {
	v := new(value)
	if err := json.Unmarshal(text, v); err != nil {
		return nil, err
	}
	switch every := v.Seconds; {
	case v.Version < valueVersion:
		return nil, fmt.Errorf("version %d of the format is not known here, only %d", v.Version, valueVersion)
	case v.Fleet != fleet:
		return nil, fmt.Errorf("it is of the fleet %q", v.Fleet)
	case v.ID != id:
		return nil, fmt.Errorf("it is of the member %q", v.ID)
	case !(every > 0 && every <= maxEvery.Seconds()):
		return nil, fmt.Errorf("it says that it is written every %g seconds", every)
	case max(time.Until(v.At), time.Until(v.Since)) > maxAhead:
		return nil, errors.New("its time is more than a day ahead of the clock of this machine")
	}
	if err := limits.Member(v.Name); err != nil {
		return nil, err
	}
	if v.isNewer() { // it is there, and what it says may have another meaning
		v.NotUp, v.More, v.Has, v.Acks = nil, 1, "", nil
	}
	var err error
	if v.has, err = base64.RawStdEncoding.DecodeString(v.Has); err != nil || len(v.has)%hashSize != 0 {
		return nil, errors.New("its list of targets is not valid")
	}
	v.Has, v.hasSum = "", sum(v.has)
	v.NotUp = slices.DeleteFunc(v.NotUp, func(n notUp) bool {
		return n.Upstream == "" || max(len(n.Upstream), len(n.Check), len(n.Why)) > maxText || n.Status != statusDown && n.Status != statusUnknown
	})
	for i := range v.NotUp {
		if lasts := &v.NotUp[i].For; !(*lasts >= 0 && *lasts <= maxLasts) {
			*lasts = 0 // it is not known
		}
	}
	maps.DeleteFunc(v.Acks, func(_ string, a ack) bool {
		return min(a.InFlight, a.Bound) < 0 || max(a.InFlight, a.Bound) > maxRequests
	})
	v.More = min(max(0, v.More), maxRequests)
	v.index()
	return v, nil
}

// isNewer reports whether a newer version of the module has written the value.
func (v *value) isNewer() bool { return v.Version > valueVersion }

// index makes what is not up findable.
func (v *value) index() {
	v.status, v.down = make(map[uint64]string, len(v.NotUp)), make(map[string]bool)
	for _, n := range v.NotUp {
		v.down[n.Upstream] = v.down[n.Upstream] || n.Status == statusDown
		v.status[targetID(n.Upstream, n.Check)] = n.Status
	}
}

// hashSize is how many bytes of the ID of a target are stored: enough that few are taken for
// others.
const hashSize = 3

// hasTarget reports whether the member says that it probes a target.
func (v *value) hasTarget(id uint64) bool {
	want := uint32(id >> 40)
	n := len(v.has) / hashSize
	at := func(i int) uint32 {
		b := v.has[i*hashSize:]
		return uint32(b[0])<<16 | uint32(b[1])<<8 | uint32(b[2])
	}
	i := sort.Search(n, func(i int) bool { return at(i) >= want })
	return i < n && at(i) == want
}

// setTargets sets which targets are probed. If there are too many, they are those with the
// lowest IDs, which all members choose alike.
func (v *value) setTargets(ids []uint64) {
	slices.Sort(ids)
	ids = slices.Compact(ids)
	ids = ids[:min(len(ids), maxTargets)]
	v.has = make([]byte, 0, len(ids)*hashSize)
	for _, id := range ids {
		v.has = append(v.has, byte(id>>56), byte(id>>48), byte(id>>40))
	}
	v.hasSum = sum(v.has)
	v.Has = base64.RawStdEncoding.EncodeToString(v.has)
}

// encode sets what is not up and the acks, as far as they fit, and returns the whole as
// text. What does not fit of the acks counts as not quiet.
func (v *value) encode(notUpHere []view.NotUp, acks map[string]ack) ([]byte, error) {
	v.Acks = acks
	v.NotUp, v.More = nil, len(notUpHere)
	text, err := json.Marshal(v)
	for _, hash := range sortedKeys(acks) {
		if err != nil || len(text) <= maxValue {
			break
		}
		v.Acks = without(v.Acks, hash)
		text, err = json.Marshal(v)
	}
	if err != nil {
		return nil, err
	}
	left := maxValue - len(text) - len("[],")
	down := slices.Clone(notUpHere)
	slices.SortStableFunc(down, func(a, b view.NotUp) int {
		return cmp.Or(strings.Compare(a.Status, b.Status), strings.Compare(a.Upstream, b.Upstream), strings.Compare(a.Check, b.Check))
	})
	reason := maxReason
	if len(down) > maxWithReasons {
		reason = 0 // that they are not up is more than why
	}
	for _, n := range down {
		one := notUp{n.Upstream, n.Check, n.Status, view.Cut(n.Reason, reason), n.Lasts}
		encoded, err := json.Marshal(one)
		if err != nil {
			return nil, err
		}
		if max(len(n.Upstream), len(n.Check)) > maxText {
			continue // others would not take it
		}
		if left -= len(encoded) + 1; left < 0 {
			break
		}
		v.NotUp = append(v.NotUp, one)
		v.More--
	}
	v.index()
	return json.Marshal(v)
}

// isKey reports whether the last part of a key can be the ID of a member.
func isKey(name string) (id string, ok bool) {
	id, ok = strings.CutSuffix(name, ".json")
	return id, ok && news.IsID(id)
}

// HostName returns the name of a member that the config gives none: that of the host, with
// dashes in place of what a name cannot have.
func HostName() string {
	name, _ := os.Hostname()
	name = strings.Map(func(r rune) rune {
		if limits.Member("a"+string(r)) != nil {
			return '-'
		}
		return r
	}, name)
	name = strings.TrimLeft(name[:min(len(name), 64)], "-._")
	return cmp.Or(name, "unnamed")
}
