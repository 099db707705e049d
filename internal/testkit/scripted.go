// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"crypto/tls"
	"io"
	"net/http"
	"sync"
	"testing"
)

// Scripted is an upstream whose answers are set by path. Without one it answers
// 200 and its name.
type Scripted struct {
	*Recorder
	mu     sync.Mutex
	status map[string]int
}

// StartScripted runs one until the test ends.
func StartScripted(tb testing.TB, name string, config *tls.Config) *Scripted {
	tb.Helper()
	s := &Scripted{status: make(map[string]int)}
	s.Recorder = StartRecorder(tb, "tcp", "", config, func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		status := s.status[r.URL.Path]
		s.mu.Unlock()
		if status != 0 {
			w.WriteHeader(status)
		}
		_, _ = io.WriteString(w, name)
	})
	return s
}

// Set sets the status of the answers to a path.
func (s *Scripted) Set(path string, status int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status[path] = status
}
