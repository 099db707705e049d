// SPDX-License-Identifier: Apache-2.0

package observer_test

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
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
