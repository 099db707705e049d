// SPDX-License-Identifier: Apache-2.0

package observer

import (
	"errors"
	"io"
	"net/http"
	"sync/atomic"

	"github.com/caddy-alive/caddy-alive/internal/witness"
)

// body is the body of a request on its way to an upstream, with the rest of what one round
// trip needs. It tells when the request was sent, and whether it was the client that
// failed.
type body struct {
	inner   io.ReadCloser
	request http.Request // with this body
	trip    witness.Trip
	failed  atomic.Bool // it could not be read
	closed  atomic.Bool
}

// Read reads from the body.
func (b *body) Read(p []byte) (int, error) {
	n, err := b.inner.Read(p)
	switch {
	case err == nil:
	case errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF):
		b.trip.Wait()
	case !b.closed.Load():
		b.failed.Store(true)
	}
	return n, err
}

// Close closes the body.
func (b *body) Close() error {
	b.closed.Store(true)
	b.trip.Wait()
	return b.inner.Close()
}
