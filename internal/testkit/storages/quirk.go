// SPDX-License-Identifier: Apache-2.0

package storages

import "time"

// Quirks are ways in which a storage differs from one that keeps all promises of
// certmagic.Storage. They can be combined with |. With none, it keeps them all.
type Quirks uint

// The quirks.
const (
	// Of lists.

	OnlyFolders     Quirks = 1 << iota // List(p, false) has only "p/", a recursive list works
	PrefixMatch                        // a list is a match of text: that of "a/shop" has "a/shops/x", too
	Flat                               // a list that is not recursive has the keys of all levels
	NoRecursive                        // a recursive list is an error
	ListsFolders                       // a recursive list has folders, too
	ListsTwice                         // each key comes twice, in no order
	ListsPhantoms                      // a list that is not empty has a key that is not there, too
	LeadingSlash                       // the keys of a list begin with a slash
	NothingNotFound                    // a list of nothing is fs.ErrNotExist
	EmptyFails                         // any list is another error while the engine has no key at all

	// Of single keys.

	DeleteNotFound  // to delete what is not there is fs.ErrNotExist
	ExistsNothing   // Exists is always false
	ExistsNoFolder  // Exists and Stat know no folders
	StatNothing     // Stat is always fs.ErrNotExist
	StatZero        // Stat knows which keys there are, and says that each has 0 bytes
	StatUnsupported // Stat is always errors.ErrUnsupported
	Lags            // what Load, List, Stat and Exists see is as old as Lag

	// Of an engine that is down, or that hangs until the context of a call ends.

	OutageLooksEmpty    // Load and Stat are fs.ErrNotExist, List has no keys and no error
	OutageListsEmptyKey // List has one key, which is empty, and no error
	OutageDeletes       // Delete is fs.ErrNotExist
	IgnoresContext      // a call that hangs goes on, and has its effect, after its context ends

	// Of locks.

	LocksNothing // Lock and Unlock do nothing
	LockFails    // Lock and Unlock are errors
)

// Lag is how old the state is that the clients of an engine that lags see: longer than
// members of a fleet wait between two looks.
const Lag = 3 * time.Second

// Kind is a storage of the table.
type Kind struct {
	Name   string
	Quirks Quirks
}

// All returns a storage without quirks, one for each quirk, and some that have several.
func All() []Kind {
	return []Kind{
		{"plain", 0},
		{"only folders in lists", OnlyFolders},
		{"lists by prefix", PrefixMatch},
		{"flat lists", Flat},
		{"no recursive lists", NoRecursive},
		{"folders in recursive lists", ListsFolders},
		{"keys listed twice", ListsTwice},
		{"phantoms in lists", ListsPhantoms},
		{"a slash before keys", LeadingSlash},
		{"a list of nothing is not found", NothingNotFound},
		{"a list of an empty engine fails", EmptyFails},
		{"a deletion of nothing is not found", DeleteNotFound},
		{"nothing exists", ExistsNothing},
		{"no folder exists", ExistsNoFolder},
		{"stat finds nothing", StatNothing},
		{"stat says 0 bytes", StatZero},
		{"stat is unsupported", StatUnsupported},
		{"reads lag", Lags},
		{"an outage looks empty", OutageLooksEmpty},
		{"an outage lists an empty key", OutageListsEmptyKey},
		{"an outage looks like a deletion", OutageDeletes},
		{"the context is ignored", IgnoresContext},
		{"locks do nothing", LocksNothing},
		{"locks fail", LockFails},
		{"like files", ListsFolders | NothingNotFound},
		{"like Postgres", PrefixMatch | Flat | NoRecursive | ExistsNoFolder},
		{"like S3", OnlyFolders | PrefixMatch | LeadingSlash | ExistsNoFolder | OutageLooksEmpty | OutageListsEmptyKey | LocksNothing},
		{"like Consul", PrefixMatch | NothingNotFound | DeleteNotFound | ExistsNoFolder | OutageDeletes},
		{"like NATS", PrefixMatch | Flat | EmptyFails | ExistsNoFolder | IgnoresContext},
		{"like Redis", Flat | ListsTwice | ListsPhantoms | ExistsNoFolder | OutageLooksEmpty},
	}
}
