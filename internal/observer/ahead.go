// SPDX-License-Identifier: Apache-2.0

package observer

import (
	"bytes"
	"io"
	"maps"
	"net/http"
	"sync"
)

// ahead is the body of an answer of unknown length that is read before it is asked for, by
// a goroutine, up to maxWhole bytes. So the end of the answer is noticed while a route of the
// handler goes on. Close waits for the goroutine.
type ahead struct {
	inner io.ReadCloser
	read  *http.Response // has the trailers once the end was read
	given *http.Response // gets them when that is asked for

	mu      sync.Mutex // guards what follows
	changed sync.Cond
	bytes   bytes.Buffer // that were read, and not asked for yet
	err     error        // that has ended the body
	full    bool         // what is left is read when it is asked for

	ended chan struct{}
}

// readAhead returns an answer whose body is read ahead. The body must allow Close while it is
// being read.
func readAhead(res *http.Response) *http.Response {
	given := *res
	given.Trailer = maps.Clone(res.Trailer) // the other one changes meanwhile
	b := &ahead{inner: res.Body, read: res, given: &given, ended: make(chan struct{})}
	b.changed.L = &b.mu
	given.Body = b
	go b.run()
	return &given
}

// run reads ahead.
func (b *ahead) run() {
	defer close(b.ended)
	chunk := make([]byte, 4<<10)
	for sum := 0; sum < maxWhole; {
		n, err := b.inner.Read(chunk[:min(len(chunk), maxWhole-sum)])
		sum += n
		b.mu.Lock()
		b.bytes.Write(chunk[:n])
		b.err, b.full = err, sum == maxWhole
		b.mu.Unlock()
		b.changed.Signal()
		if err != nil {
			return
		}
	}
}

// Read reads from the body.
func (b *ahead) Read(p []byte) (n int, err error) {
	b.mu.Lock()
	for b.bytes.Len() == 0 && b.err == nil && !b.full {
		b.changed.Wait()
	}
	if b.bytes.Len() > 0 {
		n, err = b.bytes.Read(p)
		b.mu.Unlock()
		return n, err
	}
	err = b.err
	b.mu.Unlock()
	if err == nil {
		n, err = b.inner.Read(p)
	}
	if err != nil {
		b.giveTrailers()
	}
	return n, err
}

// Close closes the body.
func (b *ahead) Close() error {
	err := b.inner.Close()
	<-b.ended
	b.giveTrailers()
	return err
}

// giveTrailers copies the trailers to the answer that was given. Nothing is being read ahead
// any more.
func (b *ahead) giveTrailers() {
	if b.given.Trailer == nil {
		b.given.Trailer = b.read.Trailer
		return
	}
	maps.Copy(b.given.Trailer, b.read.Trailer)
}
