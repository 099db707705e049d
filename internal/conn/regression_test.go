// SPDX-License-Identifier: Apache-2.0

package conn

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"
)

// Renew expires a connection that is in use, too.
func TestTransport_RenewExpiresConnectionInUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakes()
		body := f.begin(t)
		f.Renew()
		body.Close()
		f.begin(t).Close()
		equal(t, "connections", f.state(), "-b")
		f.Close()
	})
}

// Of two connections, a usable one is kept.
func TestTransport_KeepsTheUsableConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakes()
		first, second := f.begin(t), f.begin(t)
		f.conns[0].closed.Store(true)
		first.Close()
		second.Close()
		equal(t, "connections", f.state(), "-b")
		f.Close()
	})
}

// A connection that the end of a context is about to close is not kept, because it
// would close under the next request. The order of the two is random, so the test tries
// it often.
func TestTransport_ContextThatEndsAtCloseExpiresConnection(t *testing.T) {
	for range 200 {
		synctest.Test(t, func(t *testing.T) {
			f := newFakes()
			ctx, cancel := context.WithCancel(t.Context())
			resp, err := f.RoundTrip(request(t, http.MethodGet, "").WithContext(ctx))
			if err != nil {
				t.Fatal(err)
			}
			cancel()
			resp.Body.Close()
			f.begin(t).Close()
			equal(t, "connections", f.state(), "-b")
			f.Close()
		})
	}
}

// watchedBody is a request body that knows whether it was closed.
type watchedBody struct {
	io.Reader
	closed atomic.Bool
}

func (w *watchedBody) Close() error {
	w.closed.Store(true)
	return nil
}

// The body of a request is closed, also if no connection can be opened, as the
// documentation of http.RoundTripper demands.
func TestTransport_ClosesRequestBodyIfOpenFails(t *testing.T) {
	t.Parallel()
	for _, age := range []time.Duration{0, time.Hour} {
		tr := &Transport{MaxAge: age, Open: func(context.Context) (Conn, error) { return nil, errors.New("refused") }}
		body := &watchedBody{Reader: strings.NewReader("x")}
		req := request(t, http.MethodOptions, "")
		req.Body = body
		if _, err := tr.RoundTrip(req); err == nil {
			t.Error("got an answer, want an error")
		}
		if !body.closed.Load() {
			t.Errorf("the body is open (kept for %s)", age)
		}
	}
}

// A request whose body cannot be read fails with that reason, and waits for no
// answer.
func TestHTTP1_ErrorOfRequestBodyIsReturned(t *testing.T) {
	t.Parallel()
	s := serve(t, func(c *client) { c.gone() })
	tr := plain(t, s.addr)
	broken := errors.New("broken")
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://app1/", io.NopCloser(iotest.ErrReader(broken)))
	if err != nil {
		t.Fatal(err)
	}
	req.ContentLength = 5
	if _, err := tr.RoundTrip(req); err == nil || err.Error() != broken.Error() {
		t.Errorf("got %v, want %v", err, broken)
	}
}
