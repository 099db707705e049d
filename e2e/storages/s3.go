// SPDX-License-Identifier: Apache-2.0

package storages

import (
	"bytes"
	"context"
	"io"
	"io/fs"
	"strings"

	"github.com/caddyserver/certmagic"
	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

func init() { caddy.RegisterModule(new(S3)) }

// S3Bucket is the bucket of all keys. It has to exist.
const S3Bucket = "caddy"

// S3 stores in a server that speaks the protocol of S3. It takes any credentials.
type S3 struct {
	// Address is the host and port of the server.
	Address string `json:"address"`

	client *minio.Client
}

// CaddyModule returns how Caddy knows the module.
func (*S3) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "caddy.storage.e2e_s3", New: func() caddy.Module { return new(S3) }}
}

// UnmarshalCaddyfile reads the address.
func (s *S3) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	return unmarshalAddress(d, &s.Address)
}

// Provision makes the client, which connects when it is used.
func (s *S3) Provision(caddy.Context) (err error) {
	s.client, err = minio.New(s.Address, &minio.Options{Creds: credentials.NewStaticV4("e2e", "e2e", "")})
	return err
}

// CertMagicStorage returns the storage.
func (s *S3) CertMagicStorage() (certmagic.Storage, error) { return s, nil }

// Store stores a value.
func (s *S3) Store(ctx context.Context, key string, value []byte) error {
	_, err := s.client.PutObject(ctx, S3Bucket, key, bytes.NewReader(value), int64(len(value)), minio.PutObjectOptions{})
	return err
}

// Load returns a value if the server says that there is one.
func (s *S3) Load(ctx context.Context, key string) ([]byte, error) {
	if !s.Exists(ctx, key) {
		return nil, fs.ErrNotExist
	}
	object, err := s.client.GetObject(ctx, S3Bucket, key, minio.GetObjectOptions{})
	if err != nil {
		return nil, err
	}
	defer object.Close()
	return io.ReadAll(object)
}

// Delete deletes a value.
func (s *S3) Delete(ctx context.Context, key string) error {
	return s.client.RemoveObject(ctx, S3Bucket, key, minio.RemoveObjectOptions{})
}

// Exists reports whether the server says that there is a value.
func (s *S3) Exists(ctx context.Context, key string) bool {
	_, err := s.client.StatObject(ctx, S3Bucket, key, minio.StatObjectOptions{})
	return err == nil
}

// List returns the keys that begin with a prefix. If it is not recursive, they end at the
// next slash. An error ends the list, with an empty key.
func (s *S3) List(ctx context.Context, prefix string, recursive bool) (keys []string, err error) {
	for object := range s.client.ListObjects(ctx, S3Bucket, minio.ListObjectsOptions{Prefix: prefix, Recursive: recursive}) {
		keys = append(keys, object.Key)
	}
	return keys, nil
}

// Stat returns what is known of a value, nothing if the server does not say it.
func (s *S3) Stat(ctx context.Context, key string) (certmagic.KeyInfo, error) {
	object, err := s.client.StatObject(ctx, S3Bucket, key, minio.StatObjectOptions{})
	if err != nil {
		return certmagic.KeyInfo{}, nil
	}
	return certmagic.KeyInfo{Key: object.Key, Modified: object.LastModified, Size: object.Size, IsTerminal: strings.HasSuffix(object.Key, "/")}, nil
}

// Lock locks nothing.
func (*S3) Lock(context.Context, string) error { return nil }

// Unlock has nothing to do.
func (*S3) Unlock(context.Context, string) error { return nil }

var (
	_ caddy.Provisioner      = (*S3)(nil)
	_ caddy.StorageConverter = (*S3)(nil)
	_ caddyfile.Unmarshaler  = (*S3)(nil)
)
