// SPDX-License-Identifier: Apache-2.0

package settings

import (
	"context"
	"encoding/json"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-alive/caddy-alive/internal/testkit/storages"
)

// oldMember is a member as it was before the news: it stores one key an address, and lists
// and reads all of them every two seconds.
type oldMember struct {
	set     *Set
	storage *storages.Client
}

// look stores what is yet to be stored, and reads all.
func (m *oldMember) look(t *testing.T, prefix string) {
	for _, address := range m.set.toStore() {
		key := prefix + "/" + Hash(address) + ".json"
		if text, err := m.storage.Load(t.Context(), key); err == nil {
			if there, err := parse(text); err == nil {
				m.set.MergeStored(there)
			}
		}
		setting := m.set.Of(address)
		text, err := json.Marshal(setting)
		if err != nil {
			t.Error(err)
		}
		if err := m.storage.Store(t.Context(), key, text); err != nil {
			t.Error(err)
		}
		m.set.markStored(setting)
	}
	keys, _ := m.storage.List(t.Context(), prefix, false)
	for _, key := range keys {
		if text, err := m.storage.Load(t.Context(), key); err == nil && strings.HasSuffix(key, ".json") {
			if there, err := parse(text); err == nil {
				m.set.MergeStored(there)
			}
		}
	}
}

// Members that know no news, and one that does, follow each other: it them within half a
// minute and a look. What is set at any of them at the same time is lost at none.
func TestStore_OldMembersAreFollowedAndFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const prefix = "alive/fleets/shop"
		e := storages.New()
		ctx, end := context.WithCancel(t.Context())
		var running sync.WaitGroup
		old := []*oldMember{{NewSet(), e.Client()}, {NewSet(), e.Client()}}
		for _, m := range old {
			running.Go(func() {
				for storages.Pause(ctx, 2*time.Second) == nil {
					m.look(t, prefix)
				}
			})
		}
		store := NewStore(NewSet(), e.Client(), prefix, time.Second, zap.NewNop())
		store.Sync(ctx, true)
		running.Go(func() { store.Run(ctx) })
		sets := []*Set{old[0].set, old[1].set, store.set}
		for round := range 20 {
			time.Sleep(time.Duration(round) * 1700 * time.Millisecond)
			for i, set := range sets { // all at the same moment, on shared and on own addresses
				mode := Mode(Drain)
				if (round+i)%2 == 0 {
					mode = Maintenance
				}
				set.Change("shared:80", Change{Mode: &mode})
				set.Change("own"+string(rune('0'+i))+":80", Change{Mode: &mode})
			}
			store.Sync(ctx, false)
			time.Sleep(fullInterval + 2*time.Second)
			synctest.Wait()
			for address, want := range store.set.All() {
				for i, set := range sets {
					if got := set.Of(address); got == nil || !got.equal(want) {
						t.Errorf("round %d, %s at member %d: %+v, want %+v", round, address, i, got, want)
					}
				}
			}
			if n := len(store.set.All()); n != 4 {
				t.Errorf("round %d: %d settings", round, n)
			}
		}
		end()
		running.Wait()
	})
}
