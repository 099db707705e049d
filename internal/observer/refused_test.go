// SPDX-License-Identifier: Apache-2.0

package observer_test

import (
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"slices"
	"testing"
)

// TestRoundTrip_WordsOfAClientAccuseNone: the text of an error can have the name of a trailer
// that a client has chosen. The request was refused before anything was sent.
func TestRoundTrip_WordsOfAClientAccuseNone(t *testing.T) {
	for _, name := range []string{`an EOF`, `a "quoted" EOF`, `a \" EOF`, `x509: tls: `, `connection reset`, `TLS handshake timeout`} {
		t.Run(name, func(t *testing.T) {
			w := watch(t, transport(t))
			var refused error
			front := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				out := r.Clone(w.proxied(r.Context()))
				out.RequestURI, out.URL = "", &url.URL{Scheme: "http", Host: "127.0.0.1:1"}
				_, refused = w.roundTrip(t, out)
			}))
			defer front.Close()
			conn, err := net.Dial("tcp", front.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			if _, err = io.WriteString(conn, "POST / HTTP/1.1\r\nHost: app\r\nConnection: close\r\nTransfer-Encoding: chunked\r\nTrailer: "+name+"\r\n\r\n0\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			if _, err = io.Copy(io.Discard, conn); err != nil {
				t.Fatal(err)
			}
			if refused == nil {
				t.Fatal("the request was sent")
			}
			if got := w.causes(); len(got) != 0 {
				t.Errorf("%v: accused by %q", refused, got)
			}
		})
	}
}

// TestRoundTrip_LateTraces: a transport of another module can tell of a connection, or of a
// 1xx, when the round trip is over, as one that sends a request twice does. That concerns no
// other request.
func TestRoundTrip_LateTraces(t *testing.T) {
	var late []*httptrace.ClientTrace
	w := watch(t, function(func(r *http.Request) (*http.Response, error) {
		late = append(late, httptrace.ContextClientTrace(r.Context()))
		return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody, Header: make(http.Header)}, nil
	}))
	told := make([]int, 3)
	for i := range told {
		r := w.request(t, http.MethodGet, "http://app", nil)
		httptrace.ContextClientTrace(r.Context()).Got1xxResponse = func(int, textproto.MIMEHeader) error {
			told[i]++
			return nil
		}
		if _, err := w.roundTrip(t, r); err != nil {
			t.Fatal(err)
		}
		for _, trace := range late {
			trace.GotConn(httptrace.GotConnInfo{})
			if err := trace.Got1xxResponse(103, nil); err != nil {
				t.Error(err)
			}
		}
	}
	if told[0] != 3 || told[1] != 2 || told[2] != 1 {
		t.Errorf("the requests were told of %v, want [3 2 1]", told)
	}
	if firsts := w.witness.FirstBytes(); firsts != 3 {
		t.Errorf("%d first bytes, want 3", firsts)
	}
}

// TestRoundTrip_AStreamThatIsResetCounts: a connection of HTTP/2 that was used before and goes
// on was no idle one. A stream that is refused was not looked at, as on one that ends.
func TestRoundTrip_AStreamThatIsResetCounts(t *testing.T) {
	for _, tc := range []struct {
		err    string
		counts int
	}{
		{"stream error: stream ID 3; INTERNAL_ERROR; received from peer", 1},
		{"stream error: stream ID 3; REFUSED_STREAM; received from peer", 0},
		{"http2: server sent GOAWAY and closed the connection; LastStreamID=1", 0},
		{"http2: client connection lost", 0},
	} {
		t.Run(tc.err, func(t *testing.T) {
			inner := transport(t)
			inner.RegisterProtocol("reused", function(func(r *http.Request) (*http.Response, error) {
				httptrace.ContextClientTrace(r.Context()).GotConn(httptrace.GotConnInfo{Reused: true})
				return nil, errors.New(tc.err)
			}))
			w := watch(t, inner)
			if _, err := w.roundTrip(t, w.request(t, http.MethodPost, "reused://app", nil)); err == nil {
				t.Fatal("no error")
			}
			if got := w.causes(); !slices.Equal(got, []string{"outcome"}) || w.ejections() != tc.counts {
				t.Errorf("accused by %q, ejected %d times, want an outcome and %d", got, w.ejections(), tc.counts)
			}
		})
	}
}
