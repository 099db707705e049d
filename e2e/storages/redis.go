// SPDX-License-Identifier: Apache-2.0

package storages

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/redis/go-redis/v9"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

func init() { caddy.RegisterModule(new(Redis)) }

const (
	// redisRoot is the folder of all keys in Redis.
	redisRoot = "caddy"
	// redisGrace is how long connections outlive the config.
	redisGrace = 10 * time.Second
)

// releaseLock deletes a lock if it is still that of the token, and renewLock extends it.
var (
	releaseLock = redis.NewScript(`if redis.call("get", KEYS[1]) == ARGV[1] then return redis.call("del", KEYS[1]) end return 0`)
	renewLock   = redis.NewScript(`if redis.call("get", KEYS[1]) == ARGV[1] then return redis.call("pexpire", KEYS[1], ARGV[2]) end return 0`)
)

// Redis stores in Redis.
type Redis struct {
	// Address is the host and port of the server.
	Address string `json:"address"`

	client *redis.Client

	mu    sync.Mutex
	locks map[string]func() // what ends each lock that is held
}

// redisValue is how a value is stored.
type redisValue struct {
	Value    []byte    `json:"value"`
	Modified time.Time `json:"modified"`
}

// CaddyModule returns how Caddy knows the module.
func (*Redis) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "caddy.storage.e2e_redis", New: func() caddy.Module { return new(Redis) }}
}

// UnmarshalCaddyfile reads the address.
func (s *Redis) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	return unmarshalAddress(d, &s.Address)
}

// Provision connects to the server.
func (s *Redis) Provision(ctx caddy.Context) error {
	s.locks = make(map[string]func())
	s.client = redis.NewClient(&redis.Options{Addr: s.Address})
	return s.client.Ping(ctx).Err()
}

// Cleanup closes the connections a while later: other modules may end after this one.
func (s *Redis) Cleanup() error {
	time.AfterFunc(redisGrace, func() { _ = s.client.Close() })
	return nil
}

// CertMagicStorage returns the storage.
func (s *Redis) CertMagicStorage() (certmagic.Storage, error) { return s, nil }

// full returns a key with the folder of all keys.
func full(key string) string { return path.Join(redisRoot, key) }

// Store stores a value, after its name is in its folder.
func (s *Redis) Store(ctx context.Context, key string, value []byte) error {
	now := time.Now()
	text, err := json.Marshal(redisValue{value, now})
	if err != nil {
		return err
	}
	// the folders above: each is in the one above it as a name with a slash
	folder, name := path.Split(full(key))
	for {
		folder = strings.TrimSuffix(folder, "/")
		added, err := s.client.ZAdd(ctx, folder, redis.Z{Score: float64(now.Unix()), Member: name}).Result()
		if err != nil {
			return fmt.Errorf("adding %s to %s: %w", name, folder, err)
		}
		if added == 0 || folder == redisRoot {
			break // what is above is there
		}
		folder, name = path.Split(folder)
		name += "/"
	}
	return s.client.Set(ctx, full(key), text, 0).Err()
}

// load returns a value as it is stored.
func (s *Redis) load(ctx context.Context, key string) (value redisValue, err error) {
	text, err := s.client.Get(ctx, full(key)).Bytes()
	if errors.Is(err, redis.Nil) {
		return value, fs.ErrNotExist
	}
	if err != nil {
		return value, fmt.Errorf("loading %s: %w", key, err)
	}
	return value, json.Unmarshal(text, &value)
}

// Load returns a value.
func (s *Redis) Load(ctx context.Context, key string) ([]byte, error) {
	value, err := s.load(ctx, key)
	return value.Value, err
}

// Delete deletes a value, and folders that are empty then.
func (s *Redis) Delete(ctx context.Context, key string) error {
	folder, name := path.Split(full(key))
	for {
		folder = strings.TrimSuffix(folder, "/")
		if err := s.client.ZRem(ctx, folder, name).Err(); err != nil {
			return fmt.Errorf("removing %s from %s: %w", name, folder, err)
		}
		// a sorted set is gone with its last member
		left, err := s.client.Exists(ctx, folder).Result()
		if err != nil {
			return err
		}
		if left > 0 || folder == redisRoot {
			break
		}
		folder, name = path.Split(folder)
		name += "/"
	}
	return s.client.Del(ctx, full(key)).Err()
}

// Exists reports whether there is a value or a folder.
func (s *Redis) Exists(ctx context.Context, key string) bool {
	n, err := s.client.Exists(ctx, full(key)).Result()
	return err == nil && n > 0
}

// List returns what is in a folder, and with recursive what is in the folders in it instead
// of these.
func (s *Redis) List(ctx context.Context, folder string, recursive bool) (keys []string, err error) {
	names, err := s.client.ZRange(ctx, full(folder), 0, -1).Result()
	if err != nil {
		return nil, fmt.Errorf("listing %s: %w", folder, err)
	}
	for _, name := range names {
		key := path.Join(folder, name)
		if !recursive || !strings.HasSuffix(name, "/") {
			keys = append(keys, key)
			continue
		}
		below, err := s.List(ctx, key, true)
		if err != nil {
			return keys, err
		}
		keys = append(keys, below...)
	}
	return keys, nil
}

// Stat returns what is known of a value.
func (s *Redis) Stat(ctx context.Context, key string) (certmagic.KeyInfo, error) {
	value, err := s.load(ctx, key)
	if err != nil {
		return certmagic.KeyInfo{}, err
	}
	return certmagic.KeyInfo{Key: key, Modified: value.Modified, Size: int64(len(value.Value)), IsTerminal: true}, nil
}

// Lock waits for a lock, and holds it until Unlock or the end of the process.
func (s *Redis) Lock(ctx context.Context, name string) error {
	key, token := full("locks/"+name), newToken()
	for {
		switch err := s.client.SetArgs(ctx, key, token, redis.SetArgs{Mode: "NX", TTL: lockLease}).Err(); {
		case err == nil:
			s.hold(name, key, token)
			return nil
		case !errors.Is(err, redis.Nil):
			return fmt.Errorf("locking %s: %w", name, err)
		}
		select {
		case <-time.After(lockInterval):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// hold renews a lock until it is released.
func (s *Redis) hold(name, key, token string) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	s.mu.Lock()
	s.locks[name] = func() {
		cancel()
		<-ended
		_ = releaseLock.Run(context.Background(), s.client, []string{key}, token).Err() // or it expires
	}
	s.mu.Unlock()
	go func() {
		defer close(ended)
		ticker := time.NewTicker(lockLease / 2)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
				_ = renewLock.Run(ctx, s.client, []string{key}, token, lockLease.Milliseconds()).Err() // the next one may succeed
			}
		}
	}()
}

// Unlock releases a lock.
func (s *Redis) Unlock(_ context.Context, name string) error {
	s.mu.Lock()
	release := s.locks[name]
	delete(s.locks, name)
	s.mu.Unlock()
	if release == nil {
		return fmt.Errorf("%s is not locked", name)
	}
	release()
	return nil
}

var (
	_ caddy.Provisioner      = (*Redis)(nil)
	_ caddy.CleanerUpper     = (*Redis)(nil)
	_ caddy.StorageConverter = (*Redis)(nil)
	_ caddyfile.Unmarshaler  = (*Redis)(nil)
)
