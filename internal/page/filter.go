// SPDX-License-Identifier: Apache-2.0

package page

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/caddy-alive/caddy-alive/internal/view"
)

const (
	// maxText is how many bytes of a text are searched for.
	maxText = 200
	// maxKey is how long a name of a pool may be to be a key: a pool without a name has those of
	// all its upstreams.
	maxKey = 200
	// maxPools is how many pools can be chosen from.
	maxPools = 200
	// Trouble is the state that stands for all upstreams which need a look.
	Trouble = "trouble"
)

// Filter says which upstreams the page shows. An empty field wants all. The pool is named by its
// key.
type Filter struct {
	Text, State, Pool string
	// All leaves out no rows for lack of room.
	All bool
}

// ParseFilter reads a filter from the query of a URL. A state that does not exist is none.
func ParseFilter(query url.Values) Filter {
	get := func(name string) string { return strings.ToValidUTF8(query.Get(name), "\uFFFD") }
	f := Filter{Text: view.Cut(strings.TrimSpace(get("q")), maxText), State: get("state"), Pool: keyOf(get("pool")), All: get("rows") == "all"}
	if f.State != Trouble && !slices.Contains(view.States, f.State) {
		f.State = ""
	}
	return f
}

// keyOf returns the key of a pool: its name, or of a long one the beginning with a hash.
func keyOf(name string) string {
	if len(name) <= maxKey {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	return view.Cut(name, maxKey/2) + hex.EncodeToString(sum[:4])
}

// IsSet reports whether the filter excludes anything.
func (f Filter) IsSet() bool { return f.Text != "" || f.State != "" || f.Pool != "" }

// URL returns the address of the page that the filter wants, relative to that of the page. It
// is also the key of the filter: equal filters have equal addresses.
func (f Filter) URL() string {
	query := make(url.Values)
	for name, value := range map[string]string{"q": f.Text, "state": f.State, "pool": f.Pool} {
		if value != "" {
			query.Set(name, value)
		}
	}
	if f.All {
		query.Set("rows", "all")
	}
	return "?" + query.Encode()
}

// String says in words what the filter wants.
func (f Filter) String() string {
	text := "upstreams"
	switch f.State {
	case "":
	case Trouble:
		text += " that need a look"
	case "maintenance":
		text += " in maintenance"
	default:
		text += " that are " + f.State
	}
	if f.Pool != "" {
		text += fmt.Sprintf(" in the pool “%s”", f.Pool)
	}
	if f.Text != "" {
		text += fmt.Sprintf(" with “%s”", f.Text)
	}
	return text
}

// rows returns the rows of a section that the filter wants. A text in the heading is one of all its
// rows, unless the heading is made of the names of upstreams: then the text means these.
func (f Filter) rows(s *view.Section) (rows []*view.Upstream) {
	if f.Pool != "" && (s.Pool == nil || keyOf(s.Title) != f.Pool) {
		return nil
	}
	inHeading := f.isIn(s.Title) && !slices.ContainsFunc(s.Rows, func(row *view.Upstream) bool { return f.isIn(row.Upstream) })
	for _, row := range s.Rows {
		if f.wantsState(row) && (inHeading || f.finds(row)) {
			rows = append(rows, row)
		}
	}
	return rows
}

// wantsState reports whether a row is in the state that the filter wants.
func (f Filter) wantsState(row *view.Upstream) bool {
	switch f.State {
	case "":
		return true
	case Trouble:
		return needsLook(row)
	default:
		return row.State() == f.State
	}
}

// finds reports whether the text is in something that the page shows of a row.
func (f Filter) finds(row *view.Upstream) bool {
	return f.isIn(row.Upstream) || f.isIn(row.State()) || f.isIn(row.Why) ||
		slices.ContainsFunc(row.Checks, func(c view.Check) bool {
			return f.isIn(c.Check) || c.LastFailed != nil && f.isIn(c.LastFailed.Reason)
		})
}

// isIn reports whether something that is shown has the text, in capital letters or not.
func (f Filter) isIn(shown string) bool {
	return strings.Contains(strings.ToLower(shown), strings.ToLower(f.Text))
}

// needsLook reports whether an upstream of a config that is in use needs a look. A backup that is
// up and waits for its turn does not.
func needsLook(row *view.Upstream) bool {
	return row.InTrouble() && !row.Idle && !row.Stale && (!row.Backup || row.State() != "up")
}

// poolNames returns the keys of the pools that can be chosen from, sorted: none if there is nothing
// to choose, or too much. The one that is chosen is always there.
func poolNames(sections []view.Section, f Filter) (names []string) {
	for i := range sections {
		if sections[i].Pool != nil {
			names = append(names, keyOf(sections[i].Title))
		}
	}
	if len(names) < 2 || len(names) > maxPools {
		names = nil
	}
	if f.Pool != "" && !slices.Contains(names, f.Pool) {
		names = append(names, f.Pool)
	}
	slices.Sort(names)
	return names
}
