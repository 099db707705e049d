// SPDX-License-Identifier: Apache-2.0

package storages

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/nats-io/nats.go"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

func init() { caddy.RegisterModule(new(NATS)) }

// NATSBucket is the bucket of all keys. It has to exist.
const NATSBucket = "caddy"

// natsLease is how long a lock outlives a process that does not release it.
const natsLease = 5 * time.Minute

// NATS stores in the key-value store of NATS.
type NATS struct {
	// Address is the host and port of the server.
	Address string `json:"address"`

	values nats.KeyValue

	mu    sync.Mutex
	locks map[string]uint64 // the revision of each lock that is held
}

// CaddyModule returns how Caddy knows the module.
func (*NATS) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "caddy.storage.e2e_nats", New: func() caddy.Module { return new(NATS) }}
}

// UnmarshalCaddyfile reads the address.
func (s *NATS) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	return unmarshalAddress(d, &s.Address)
}

// Provision connects to the server.
func (s *NATS) Provision(caddy.Context) error {
	s.locks = make(map[string]uint64)
	conn, err := nats.Connect("nats://" + s.Address)
	if err != nil {
		return err
	}
	stream, err := conn.JetStream()
	if err == nil {
		s.values, err = stream.KeyValue(NATSBucket)
	}
	if err != nil {
		conn.Close()
	}
	return err
}

// CertMagicStorage returns the storage.
func (s *NATS) CertMagicStorage() (certmagic.Storage, error) { return s, nil }

// swapped returns a key of Caddy as one of NATS, where "." separates, and the other way.
func swapped(key string) string {
	return strings.Map(func(r rune) rune {
		switch r {
		case '.':
			return '/'
		case '/':
			return '.'
		default:
			return r
		}
	}, key)
}

// Store stores a value.
func (s *NATS) Store(_ context.Context, key string, value []byte) error {
	_, err := s.values.Put(swapped(key), value)
	return err
}

// Load returns a value.
func (s *NATS) Load(_ context.Context, key string) ([]byte, error) {
	entry, err := s.values.Get(swapped(key))
	if errors.Is(err, nats.ErrKeyNotFound) {
		return nil, fs.ErrNotExist
	}
	if err != nil {
		return nil, err
	}
	return entry.Value(), nil
}

// Delete deletes a value.
func (s *NATS) Delete(_ context.Context, key string) error { return s.values.Delete(swapped(key)) }

// Exists reports whether there is a value.
func (s *NATS) Exists(_ context.Context, key string) bool {
	_, err := s.values.Get(swapped(key))
	return err == nil
}

// List returns the keys in a folder, and with recursive those in the folders in it, too.
func (s *NATS) List(_ context.Context, folder string, recursive bool) (keys []string, err error) {
	pattern := swapped(strings.TrimSuffix(folder, "/"))
	if pattern != "" {
		pattern += "."
	}
	if recursive {
		pattern += ">"
	} else {
		pattern += "*"
	}
	watcher, err := s.values.Watch(pattern, nats.IgnoreDeletes(), nats.MetaOnly())
	if err != nil {
		return nil, err
	}
	defer func() { _ = watcher.Stop() }() // if it fails, the connection is gone
	for entry := range watcher.Updates() {
		if entry == nil {
			break // these are all that there were
		}
		keys = append(keys, swapped(entry.Key()))
	}
	return keys, nil
}

// Stat asks for the key as Caddy writes it, so it finds nothing.
func (s *NATS) Stat(_ context.Context, key string) (certmagic.KeyInfo, error) {
	entry, err := s.values.Get(key)
	if err != nil {
		return certmagic.KeyInfo{}, fs.ErrNotExist
	}
	return certmagic.KeyInfo{Key: key, Modified: entry.Created(), Size: int64(len(entry.Value())), IsTerminal: true}, nil
}

// Lock waits for a lock.
func (s *NATS) Lock(ctx context.Context, name string) error {
	key := "LOCK." + swapped(name)
	for {
		revision, err := s.tryLock(key)
		if err != nil {
			return fmt.Errorf("locking %s: %w", name, err)
		}
		if revision > 0 {
			s.mu.Lock()
			s.locks[name] = revision
			s.mu.Unlock()
			return nil
		}
		select {
		case <-time.After(lockInterval):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// tryLock returns the revision of a lock, 0 if another process has it.
func (s *NATS) tryLock(key string) (revision uint64, err error) {
	until, err := time.Now().Add(natsLease).MarshalText()
	if err != nil {
		return 0, err
	}
	entry, err := s.values.Get(key)
	switch {
	case errors.Is(err, nats.ErrKeyNotFound):
		revision, err = s.values.Create(key, until)
	case err != nil:
		return 0, err
	default:
		var expires time.Time
		if err := expires.UnmarshalText(entry.Value()); err == nil && time.Now().Before(expires) {
			return 0, nil
		}
		revision, err = s.values.Update(key, until, entry.Revision())
	}
	if errors.Is(err, nats.ErrKeyExists) {
		return 0, nil // another process was first
	}
	return revision, err
}

// Unlock releases a lock.
func (s *NATS) Unlock(_ context.Context, name string) error {
	s.mu.Lock()
	revision := s.locks[name]
	delete(s.locks, name)
	s.mu.Unlock()
	return s.values.Delete("LOCK."+swapped(name), nats.LastRevision(revision))
}

var (
	_ caddy.Provisioner      = (*NATS)(nil)
	_ caddy.StorageConverter = (*NATS)(nil)
	_ caddyfile.Unmarshaler  = (*NATS)(nil)
)
