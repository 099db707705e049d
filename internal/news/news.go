// SPDX-License-Identifier: Apache-2.0

// Package news is one key of a storage by which the members of a fleet tell each other what
// is new: which settings were stored, which members joined, which upstreams are waited for,
// and which seem to fail. All members write it: each reads it, adds its entries, and writes
// it, without a lock, since some storages have none. So an entry can get lost. Its writer
// looks for it, and writes it again.
//
// The news only say where to look. What they say of is stored elsewhere, and each member
// reads that as a whole from time to time: the news make it quick, not right.
//
// Board.mu is held for moments, and not while the storage is used or a log line is written.
package news

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"time"
)

// How many entries of each kind there are at most. The oldest go first.
const (
	maxChanges = 64
	maxWaits   = 32
	maxDoubts  = 256
)

const (
	// version is that of the format.
	version = 1
	// maxSize bounds what is read, in bytes.
	maxSize = 256 << 10
	// maxFor bounds how long a wait lasts.
	maxFor = 24 * time.Hour
)

// Kind is what an entry is about.
type Kind string

// The kinds of entries.
const (
	// Setting: a mode or weight was stored. The key is the hash of the address.
	Setting Kind = "setting"
	// Member: a member joined. The key is its ID.
	Member Kind = "member"
	// Wait: a member waits for an upstream. The key is the hash of the address.
	Wait Kind = "wait"
	// Doubt: a prober found that a target fails, or changed. The key is the ID of the target.
	Doubt Kind = "doubt"
)

// Entry is one piece of news.
type Entry struct {
	ID   string `json:"id"`
	Kind Kind   `json:"kind"`
	Key  string `json:"key"`
	// From is the ID of the member that writes it.
	From string `json:"from,omitempty"`
	// At is when what was stored changed, or the revision that is waited for.
	At time.Time `json:"at,omitzero"`
	// For is how long a wait lasts.
	For time.Duration `json:"for,omitempty"`
	// Status is what a prober found.
	Status string `json:"status,omitempty"`
}

// NewID returns an ID that no other has.
func NewID() string {
	id := make([]byte, 8)
	_, _ = rand.Read(id) // it does not fail
	return hex.EncodeToString(id)
}

var (
	isID   = regexp.MustCompile(`^[0-9a-f]{16}$`).MatchString
	isHash = regexp.MustCompile(`^[0-9a-f]{64}$`).MatchString
)

// IsID reports whether a text can be an ID.
func IsID(text string) bool { return isID(text) }

// isValid reports whether an entry makes sense. What others write may be anything.
func (e *Entry) isValid() bool {
	if !isID(e.ID) || e.From != "" && !isID(e.From) || e.For < 0 || e.For > maxFor || len(e.Status) > maxStatus {
		return false
	}
	switch e.Kind {
	case Setting, Wait:
		return isHash(e.Key)
	case Member, Doubt:
		return isID(e.Key)
	default:
		return false
	}
}

// maxStatus bounds the status of an entry, in bytes.
const maxStatus = 16

// document is what is stored.
type document struct {
	Version int `json:"v"`
	// Born is new whenever the document is made anew, so that members notice that one before
	// it is gone.
	Born string `json:"born"`
	// Nonce is new with each write.
	Nonce   string  `json:"nonce"`
	Changes []Entry `json:"changes"` // settings and members, the oldest first
	Waits   []Entry `json:"waits"`
	Doubts  []Entry `json:"doubts"`
}

// newerError says that a newer version of the module has written the news.
type newerError struct{ version int }

// Error says what to do.
func (e newerError) Error() string {
	return fmt.Sprintf("version %d of the format is not known here, only %d: all members of a fleet should run the same version", e.version, version)
}

// parse reads what a storage holds, which may be anything. Entries that make no sense are
// left out.
func parse(text []byte) (*document, error) {
	d := new(document)
	if err := json.Unmarshal(text, d); err != nil {
		return nil, err
	}
	switch {
	case d.Version > version:
		return nil, newerError{d.Version}
	case d.Version != version || !isID(d.Born):
		return nil, fmt.Errorf("it is not in version %d of the format", version)
	}
	clean := func(entries []Entry, most int) []Entry {
		entries = slices.DeleteFunc(entries, func(e Entry) bool { return !e.isValid() })
		return entries[max(0, len(entries)-most):]
	}
	d.Changes, d.Waits, d.Doubts = clean(d.Changes, maxChanges), clean(d.Waits, maxWaits), clean(d.Doubts, maxDoubts)
	return d, nil
}

// newDocument returns an empty one.
func newDocument() *document { return &document{Version: version, Born: NewID()} }

// list returns where entries of a kind are, and how many there may be.
func (d *document) list(k Kind) (entries *[]Entry, most int) {
	switch k {
	case Wait:
		return &d.Waits, maxWaits
	case Doubt:
		return &d.Doubts, maxDoubts
	default:
		return &d.Changes, maxChanges
	}
}

// add adds an entry as the newest one.
func (d *document) add(e Entry) {
	entries, most := d.list(e.Kind)
	*entries = append(*entries, e)
	*entries = (*entries)[max(0, len(*entries)-most):]
}

// ids returns the IDs of all entries.
func (d *document) ids() map[string]bool {
	ids := make(map[string]bool, len(d.Changes)+len(d.Waits)+len(d.Doubts))
	for _, entries := range [][]Entry{d.Changes, d.Waits, d.Doubts} {
		for i := range entries {
			ids[entries[i].ID] = true
		}
	}
	return ids
}
