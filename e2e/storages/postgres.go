// SPDX-License-Identifier: Apache-2.0

package storages

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/caddyserver/certmagic"
	_ "github.com/jackc/pgx/v5/stdlib" // the driver

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

func init() { caddy.RegisterModule(new(Postgres)) }

const (
	// postgresTimeout bounds each query.
	postgresTimeout = 3 * time.Second
	// postgresLease is how long a lock outlives a process that does not release it.
	postgresLease = time.Minute
)

// postgresTables are the tables. Creating what another process is creating fails, so there
// is a lock.
const postgresTables = `
	select pg_advisory_xact_lock(20260101);
	create table if not exists e2e_values (key text primary key, value bytea not null, modified timestamptz not null default now());
	create table if not exists e2e_locks (key text primary key, expires timestamptz not null)`

// Postgres stores in a table of Postgres.
type Postgres struct {
	// Address is the URL of the database.
	Address string `json:"address"`

	db *sql.DB
}

// CaddyModule returns how Caddy knows the module.
func (*Postgres) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "caddy.storage.e2e_postgres", New: func() caddy.Module { return new(Postgres) }}
}

// UnmarshalCaddyfile reads the address.
func (s *Postgres) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	return unmarshalAddress(d, &s.Address)
}

// Provision connects to the server, and creates the tables if there are none.
func (s *Postgres) Provision(ctx caddy.Context) (err error) {
	if s.db, err = sql.Open("pgx", s.Address); err != nil {
		return err
	}
	within, cancel := context.WithTimeout(ctx, postgresTimeout)
	defer cancel()
	tx, err := s.db.BeginTx(within, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // nothing if it was committed
	if _, err := tx.ExecContext(within, postgresTables); err != nil {
		return err
	}
	return tx.Commit()
}

// CertMagicStorage returns the storage.
func (s *Postgres) CertMagicStorage() (certmagic.Storage, error) { return s, nil }

// exec runs a statement.
func (s *Postgres) exec(ctx context.Context, statement string, args ...any) error {
	ctx, cancel := context.WithTimeout(ctx, postgresTimeout)
	defer cancel()
	_, err := s.db.ExecContext(ctx, statement, args...)
	return err
}

// row reads the one row of a query.
func (s *Postgres) row(ctx context.Context, query, key string, to ...any) error {
	ctx, cancel := context.WithTimeout(ctx, postgresTimeout)
	defer cancel()
	return s.db.QueryRowContext(ctx, query, key).Scan(to...)
}

// Store stores a value.
func (s *Postgres) Store(ctx context.Context, key string, value []byte) error {
	return s.exec(ctx, `insert into e2e_values (key, value) values ($1, $2)
		on conflict (key) do update set value = excluded.value, modified = now()`, key, value)
}

// Load returns a value.
func (s *Postgres) Load(ctx context.Context, key string) (value []byte, err error) {
	err = s.row(ctx, `select value from e2e_values where key = $1`, key, &value)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, fs.ErrNotExist
	}
	return value, err
}

// Delete deletes a value.
func (s *Postgres) Delete(ctx context.Context, key string) error {
	return s.exec(ctx, `delete from e2e_values where key = $1`, key)
}

// Exists reports whether there is a value.
func (s *Postgres) Exists(ctx context.Context, key string) bool {
	var there bool
	err := s.row(ctx, `select exists (select from e2e_values where key = $1)`, key, &there)
	return err == nil && there
}

// List returns the keys that begin with a prefix.
func (s *Postgres) List(ctx context.Context, prefix string, recursive bool) (keys []string, err error) {
	if recursive {
		return nil, errors.New("a recursive list is not supported")
	}
	ctx, cancel := context.WithTimeout(ctx, postgresTimeout)
	defer cancel()
	rows, err := s.db.QueryContext(ctx, `select key from e2e_values where key like $1 || '%'`, prefix)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var key string
		if err := rows.Scan(&key); err != nil {
			return nil, err
		}
		keys = append(keys, key)
	}
	return keys, rows.Err()
}

// Stat returns what is known of a value.
func (s *Postgres) Stat(ctx context.Context, key string) (certmagic.KeyInfo, error) {
	info := certmagic.KeyInfo{Key: key, IsTerminal: true}
	if err := s.row(ctx, `select length(value), modified from e2e_values where key = $1`, key, &info.Size, &info.Modified); err != nil {
		return certmagic.KeyInfo{}, err
	}
	return info, nil
}

// Lock takes a lock, and fails if it is taken.
func (s *Postgres) Lock(ctx context.Context, name string) error {
	var taken string
	err := s.row(ctx, fmt.Sprintf(`insert into e2e_locks (key, expires) values ($1, now() + interval '%d seconds')
		on conflict (key) do update set expires = excluded.expires where e2e_locks.expires < now()
		returning key`, int(postgresLease.Seconds())), name, &taken)
	if errors.Is(err, sql.ErrNoRows) {
		return fmt.Errorf("%s is locked", name)
	}
	return err
}

// Unlock releases a lock.
func (s *Postgres) Unlock(ctx context.Context, name string) error {
	return s.exec(ctx, `delete from e2e_locks where key = $1`, name)
}

var (
	_ caddy.Provisioner      = (*Postgres)(nil)
	_ caddy.StorageConverter = (*Postgres)(nil)
	_ caddyfile.Unmarshaler  = (*Postgres)(nil)
)
