// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"net/http"
	"sync"
	"testing"
)

// Gate holds what goes through it until it is opened.
type Gate struct {
	Opened chan struct{}
	once   sync.Once
}

// NewGate returns one that is opened at the end of the test at the latest.
func NewGate(tb testing.TB) *Gate {
	tb.Helper()
	g := &Gate{Opened: make(chan struct{})}
	tb.Cleanup(g.Open)
	return g
}

// Open opens it.
func (g *Gate) Open() { g.once.Do(func() { close(g.Opened) }) }

// Pass waits for the gate, or for the client to leave.
func (g *Gate) Pass(r *http.Request) {
	select {
	case <-g.Opened:
	case <-r.Context().Done():
	}
}
