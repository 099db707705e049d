// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"
)

// habits are how a storage behaves where storages differ.
type habits struct {
	flat, deep string // the two lists of a folder
	folder     bool   // a folder exists
	stat       string // of a value
	lost       string // Stat of what is not there
	locked     string // Lock of what is locked
	hung       string // Load with a deadline, while the engine hangs
}

// The storages of these tests behave as the plugins do that they stand for: each differs from
// what the others do, and the tests of fleets are worth as much as these differences.
func TestStorages_BehaveAsPlugins(t *testing.T) {
	want := map[string]habits{
		"files":    {flat: "q/a.json q/b", deep: "q/a.json q/b q/b/c.json", folder: true, stat: "4 bytes", lost: "not there", locked: "waits"},
		"redis":    {flat: "q/a.json q/b", deep: "q/a.json q/b/c.json", folder: true, stat: "4 bytes", lost: "not there", locked: "waits", hung: "fails late"},
		"nats":     {flat: "q/a.json", deep: "q/a.json q/b/c.json", stat: "not there", lost: "not there", locked: "waits", hung: "fails late"},
		"postgres": {flat: "q/a.json q/b/c.json qr/d.json", deep: "fails", stat: "4 bytes", lost: "fails", locked: "fails", hung: "fails in time"},
		"s3":       {flat: "q/ qr/", deep: "q/a.json q/b/c.json qr/d.json", stat: "4 bytes", lost: "0 bytes", locked: "locks", hung: "not there"},
	}
	onEachEngine(t, func(t *testing.T, e *engine) {
		storage := e.open(t)
		ctx := t.Context()
		for _, key := range []string{"q/a.json", "q/b/c.json", "qr/d.json"} {
			if err := storage.Store(ctx, key, []byte("text")); err != nil {
				t.Fatal(err)
			}
			if value, err := storage.Load(ctx, key); err != nil || string(value) != "text" {
				t.Errorf("%s: %q, %v", key, value, err)
			}
		}
		if value, err := storage.Load(ctx, "q/none.json"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("what is not there: %q, %v", value, err)
		}
		got := habits{
			flat: keysOf(storage.List(ctx, "q", false)), deep: keysOf(storage.List(ctx, "q", true)),
			folder: storage.Exists(ctx, "q"),
			stat:   info(storage.Stat(ctx, "q/a.json")), lost: info(storage.Stat(ctx, "q/none.json")),
			locked: lockTwice(t, storage),
		}
		if e.launch != nil {
			got.hung = e.loadWhileHung(storage)
		}
		if name := t.Name()[strings.LastIndexByte(t.Name(), '/')+1:]; got != want[name] {
			t.Errorf("it behaves as %+v, want %+v", got, want[name])
		}
		// what is deleted is gone everywhere
		for _, key := range []string{"q/a.json", "q/b/c.json", "q/none.json"} {
			if err := storage.Delete(ctx, key); err != nil {
				t.Errorf("%s: %v", key, err)
			}
		}
		if value, err := storage.Load(ctx, "q/a.json"); !errors.Is(err, fs.ErrNotExist) || storage.Exists(ctx, "q/a.json") {
			t.Errorf("after it was deleted: %q, %v", value, err)
		}
	})
}

// keysOf returns sorted keys.
func keysOf(keys []string, err error) string {
	if err != nil {
		return "fails"
	}
	slices.Sort(keys)
	return strings.Join(keys, " ")
}

// info returns what Stat says.
func info(info certmagic.KeyInfo, err error) string {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "not there"
	case err != nil:
		return "fails"
	default:
		return fmt.Sprintf("%d bytes", info.Size)
	}
}

// lockTwice returns what a second lock does. After the first ended, it has to succeed.
func lockTwice(t *testing.T, storage certmagic.Storage) (second string) {
	lock := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		return storage.Lock(ctx, "it")
	}
	if err := lock(); err != nil {
		t.Error(err)
	}
	switch err := lock(); {
	case err == nil:
		second = "locks"
	case errors.Is(err, context.DeadlineExceeded):
		second = "waits"
	default:
		second = "fails"
	}
	if err := storage.Unlock(t.Context(), "it"); err != nil {
		t.Error(err)
	}
	if err := lock(); err != nil {
		t.Errorf("after it was unlocked: %v", err)
	}
	if err := storage.Unlock(t.Context(), "it"); err != nil {
		t.Error(err)
	}
	return second
}

// loadWhileHung returns how a load with a deadline ends while the engine hangs.
func (e *engine) loadWhileHung(storage certmagic.Storage) string {
	const deadline = 300 * time.Millisecond
	e.signal(syscall.SIGSTOP)
	defer e.signal(syscall.SIGCONT)
	ctx, cancel := context.WithTimeout(e.t.Context(), deadline)
	defer cancel()
	began := time.Now()
	_, err := storage.Load(ctx, "q/a.json")
	switch late := time.Since(began) > 5*deadline; {
	case err == nil:
		return "loads"
	case late:
		return "fails late"
	case errors.Is(err, fs.ErrNotExist):
		return "not there"
	default:
		return "fails in time"
	}
}
