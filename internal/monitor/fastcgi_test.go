// SPDX-License-Identifier: Apache-2.0

package monitor

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/fcgi"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy/fastcgi"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// routeOverFastCGI returns the route of a check over FastCGI.
func routeOverFastCGI(t *testing.T, dial string, over *fastcgi.Transport) *Route {
	t.Helper()
	ctx := newContext(t)
	if err := over.Provision(ctx); err != nil {
		t.Fatal(err)
	}
	route, err := routeTo(newTransport(t, ctx, over), dial, new(Check))
	if err != nil {
		t.Fatal(err)
	}
	return route
}

// send sends a request over a route.
func send(t *testing.T, ctx context.Context, route *Route, method, body string) (*http.Response, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, method, "http://app.test/page?a=b", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	return route.RoundTripper.RoundTrip(req)
}

// Requests over FastCGI arrive as they are sent, with their bodies.
func TestFastCGI_RequestArrives(t *testing.T) {
	stream, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = fcgi.Serve(stream, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			w.Header().Set("X-Asked", strings.Join([]string{r.Method, r.Host, r.URL.RequestURI(), r.RemoteAddr}, " "))
			w.WriteHeader(http.StatusAccepted)
			_, _ = w.Write(body)
		}))
	}()
	defer func() {
		stream.Close()
		<-done
	}()
	route := routeOverFastCGI(t, stream.Addr().String(), new(fastcgi.Transport))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for method, text := range map[string]string{"GET": "", "POST": strings.Repeat("x", 10_000)} {
		resp, err := send(t, ctx, route, method, text)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil || string(body) != text || resp.StatusCode != http.StatusAccepted {
			t.Errorf("%s: got %d, %.99q, %v, want 202 and what was sent", method, resp.StatusCode, body, err)
		}
		if got, want := resp.Header.Get("X-Asked"), method+" app.test /page?a=b 127.0.0.1:0"; got != want {
			t.Errorf("%s: got %q, want %q", method, got, want)
		}
		resp.Body.Close()
	}
	route.close() // at once, because no connection is left
}

// silent accepts one connection, sends a text, and reports its end.
func silent(t *testing.T, text string) (addr string, ended <-chan struct{}) {
	t.Helper()
	stream, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stream.Close() })
	end := make(chan struct{})
	go func() {
		defer close(end)
		conn, err := stream.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, text)
		_, _ = io.Copy(io.Discard, conn)
	}()
	return stream.Addr().String(), end
}

// A request over FastCGI ends with its context, whatever the upstream does, and its
// connection at its timeout.
func TestFastCGI_RequestEndsWithItsContext(t *testing.T) {
	// a record of the standard output, with a header and the beginning of a body
	const begun = "\x01\x06\x00\x01\x00\x10\x00\x00Status: 200\r\n\r\nx"
	for name, text := range map[string]string{"no answer": "", "an endless body": begun} {
		t.Run(name, func(t *testing.T) {
			addr, ended := silent(t, text)
			route := routeOverFastCGI(t, addr, new(fastcgi.Transport))
			const timeout = time.Second
			limited, cancelLimit := context.WithTimeout(t.Context(), timeout)
			defer cancelLimit()
			ctx, cancel := context.WithCancelCause(limited)
			began := time.Now()
			time.AfterFunc(50*time.Millisecond, func() { cancel(nil) })
			resp, err := send(t, ctx, route, http.MethodGet, "")
			if err == nil {
				_, err = io.ReadAll(resp.Body)
				resp.Body.Close()
			}
			if !errors.Is(err, context.Canceled) || time.Since(began) > timeout*3/4 {
				t.Errorf("got %v after %s, want that of the context at once", err, time.Since(began))
			}
			testkit.Wait(t, ended, 5*timeout)
		})
	}
}

// What is no answer of a FastCGI server is an error.
func TestFastCGI_OtherAnswersAreErrors(t *testing.T) {
	for name, text := range map[string]string{
		"HTTP":               "HTTP/1.1 400 Bad Request\r\n\r\n",
		"an end at once":     "\x01\x03\x00\x01\x00\x08\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
		"an output of blank": "\x01\x06\x00\x01\x00\x02\x00\x00\r\n\x01\x03\x00\x01\x00\x08\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
	} {
		t.Run(name, func(t *testing.T) {
			addr, ended := silent(t, text)
			route := routeOverFastCGI(t, addr, &fastcgi.Transport{ReadTimeout: caddy.Duration(300 * time.Millisecond)})
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			if resp, err := send(t, ctx, route, http.MethodGet, ""); err == nil {
				t.Errorf("got an answer with status %d, want an error", resp.StatusCode)
			}
			testkit.Wait(t, ended, 10*time.Second)
		})
	}
}
