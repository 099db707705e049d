// SPDX-License-Identifier: Apache-2.0

// Package storages has storage modules of Caddy for the tests of fleets: Redis, NATS,
// Postgres and S3. Each takes an address and stores in the clear. They are not the storage
// plugins that users install, and they are not for use outside of these tests.
//
// They copy how a widespread plugin for each engine behaves, also where that differs from
// what certmagic.Storage asks for:
//
//   - Redis: a sorted set of names for each folder, which a list walks. A value and its place
//     in the folder are stored one after the other. The deadline of a context is ignored while
//     the server hangs; the client gives up by its own timeouts, after several tries. A folder
//     exists. A config does not load without the server.
//   - NATS: a bucket of the JetStream key-value store, with "." and "/" of keys swapped. A list
//     that is not recursive has no folders. All contexts are ignored, and a list waits without
//     end if the server stops in between. Stat says that nothing is there. A config does not load without the server.
//   - Postgres: one table. A list is of all keys that begin with the prefix, of other folders,
//     too, with "_" and "%" as wildcards. A recursive list fails. Stat of a missing key is not
//     fs.ErrNotExist. A folder does not exist. Lock fails at once if the key is locked. A config
//     does not load without the server.
//   - S3: a list is of all keys that begin with the prefix, of other folders, too. One that is
//     not recursive has only the folders themselves. An error while it lists becomes an empty
//     key, without an error. A value is missing as soon as the server does not say that it is
//     there, so that an outage looks like an empty bucket. Stat hides all errors. A folder does
//     not exist. Lock locks nothing.
//
// Connections outlive the config that opened them, as they do in the plugins: those to Redis for
// ten seconds, and those to NATS and Postgres until the process ends.
package storages

import (
	"crypto/rand"
	"time"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

const (
	// lockLease is how long a lock outlives a process that does not release it.
	lockLease = 5 * time.Second
	// lockInterval is how often to try again to get a lock.
	lockInterval = 200 * time.Millisecond
)

// unmarshalAddress reads the one argument of a storage: storage <module> <address>.
func unmarshalAddress(d *caddyfile.Dispenser, address *string) error {
	d.Next()
	if !d.AllArgs(address) {
		return d.ArgErr()
	}
	if d.NextBlock(0) {
		return d.Errf("unrecognized option %q: a storage of the tests has none", d.Val())
	}
	return nil
}

// newToken returns a random value that tells the owner of a lock.
func newToken() string { return rand.Text() }
