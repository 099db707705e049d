// SPDX-License-Identifier: Apache-2.0

package storages

import "time"

// Quirk is how a storage differs from one that keeps all promises of certmagic.Storage.
// The zero value keeps them all.
type Quirk struct {
	Name string

	// Lists.

	OnlyFolders     bool // List(p, false) has only "p/", a recursive list works
	PrefixMatch     bool // a list is a match of text: that of "a/shop" has "a/shops/x", too
	Flat            bool // a list that is not recursive has the keys of all levels
	NoRecursive     bool // a recursive list is an error
	ListsFolders    bool // a recursive list has folders, too
	ListsTwice      bool // each key comes twice, in no order
	NothingNotFound bool // a list of nothing is fs.ErrNotExist

	// Single keys.

	DeleteNotFound  bool // to delete what is not there is fs.ErrNotExist
	ExistsNothing   bool // Exists is always false
	StatNothing     bool // Stat is always fs.ErrNotExist
	StatZero        bool // Stat knows which keys there are, and says that each has 0 bytes
	StatUnsupported bool // Stat is always errors.ErrUnsupported

	// The engine.

	// OutageLooksEmpty is that of a storage that takes each error for "not found": while
	// the engine is down, and after a deadline while it hangs, Load and Stat are
	// fs.ErrNotExist, List has no keys and no error, and Exists is false. Store and Delete
	// are errors.
	OutageLooksEmpty bool
	// IgnoresContext is that of a storage whose calls wait for the engine, not for the
	// context: a call that hangs goes on, and has its effect, after its deadline.
	IgnoresContext bool
	// Lag is how old the state is that Load, List, Stat and Exists see.
	Lag time.Duration

	// Locks.

	LocksNothing bool // Lock and Unlock do nothing
	LockFails    bool // Lock and Unlock are errors
}

// lag is that of the storage that lags: longer than members of a fleet wait between two
// looks.
const lag = 3 * time.Second

// All returns one quirk each, and some storages that have several. The first one has
// none.
func All() []Quirk {
	return []Quirk{
		{Name: "plain"},
		{Name: "only folders in lists", OnlyFolders: true},
		{Name: "lists by prefix", PrefixMatch: true},
		{Name: "flat lists", Flat: true},
		{Name: "no recursive lists", NoRecursive: true},
		{Name: "folders in recursive lists", ListsFolders: true},
		{Name: "keys listed twice", ListsTwice: true},
		{Name: "a list of nothing is not found", NothingNotFound: true},
		{Name: "a deletion of nothing is not found", DeleteNotFound: true},
		{Name: "nothing exists", ExistsNothing: true},
		{Name: "stat finds nothing", StatNothing: true},
		{Name: "stat says 0 bytes", StatZero: true},
		{Name: "stat is unsupported", StatUnsupported: true},
		{Name: "an outage looks empty", OutageLooksEmpty: true},
		{Name: "the context is ignored", IgnoresContext: true},
		{Name: "reads lag", Lag: lag},
		{Name: "locks do nothing", LocksNothing: true},
		{Name: "locks fail", LockFails: true},
		{Name: "like files", ListsFolders: true, NothingNotFound: true},
		{Name: "like Postgres", PrefixMatch: true, Flat: true, NoRecursive: true},
		{Name: "like S3", OnlyFolders: true, PrefixMatch: true, OutageLooksEmpty: true, LocksNothing: true},
		{
			Name: "like Redis", Flat: true, ListsTwice: true, NothingNotFound: true, DeleteNotFound: true,
			IgnoresContext: true,
		},
	}
}
