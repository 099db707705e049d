// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// kind is a Prober with a Provision method.
type kind interface {
	Prober
	caddy.Provisioner
}

// provision reads a kind from JSON as Caddy does, with an error for unknown fields, and
// provisions it.
func provision[K kind](p K, config string) error {
	decoder := json.NewDecoder(strings.NewReader(config))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(p); err != nil {
		return err
	}
	return p.Provision(caddy.Context{})
}

// loadKind calls provision for a valid config.
func loadKind[K kind](tb testing.TB, p K, config string) K {
	tb.Helper()
	if err := provision(p, config); err != nil {
		tb.Fatalf("provisioning %s: %v", config, err)
	}
	return p
}

// way is how the proxy reaches an upstream for one check.
type way struct {
	network, addr string
	tls           *tls.Config // the settings of the proxy; nil without TLS
	differs       Overrides
	host          string // default: addr
	// read counts the bytes that are received
	read *atomic.Int64
}

// upstream returns an upstream with a connection for every probe. Scheme, TLS settings
// and HTTP versions are those of the proxy, unless the overrides of the check differ.
func (w way) upstream(tb testing.TB) Upstream {
	tb.Helper()
	up := Upstream{Address: w.addr, Scheme: "http", Host: cmp.Or(w.host, w.addr)}
	if w.tls != nil {
		up.Scheme = "https"
	}
	up.Scheme = cmp.Or(w.differs.Scheme, up.Scheme)
	up.Dial = func(ctx context.Context) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, cmp.Or(w.network, "tcp"), w.addr)
		if err != nil || w.read == nil {
			return conn, err
		}
		return countingConn{conn, w.read}, nil
	}

	config := w.tls
	if config == nil {
		config = new(tls.Config)
	}
	config = config.Clone()
	if config.ServerName = cmp.Or(w.differs.ServerName, config.ServerName); config.ServerName == "" {
		config.ServerName, _, _ = net.SplitHostPort(up.Host)
	}
	config.InsecureSkipVerify = config.InsecureSkipVerify || w.differs.InsecureSkipVerify
	up.DialTLS = func(ctx context.Context, configure func(*tls.Config)) (*tls.Conn, error) {
		conn, err := up.Dial(ctx)
		if err != nil {
			return nil, err
		}
		own := config.Clone()
		if configure != nil {
			configure(own)
		}
		secure := tls.Client(conn, own)
		if err := secure.HandshakeContext(ctx); err != nil {
			conn.Close()
			return nil, err
		}
		return secure, nil
	}

	transport := &http.Transport{
		DialContext:            func(ctx context.Context, _, _ string) (net.Conn, error) { return up.Dial(ctx) },
		TLSClientConfig:        config,
		Protocols:              new(http.Protocols),
		DisableKeepAlives:      true,
		DisableCompression:     true,
		MaxResponseHeaderBytes: 64 << 10,
		HTTP2:                  &http.HTTP2Config{MaxReceiveBufferPerConnection: 256 << 10, MaxReceiveBufferPerStream: 256 << 10},
	}
	transport.Protocols.SetHTTP1(!w.differs.HTTP2)
	transport.Protocols.SetHTTP2(w.differs.HTTP2 && up.Scheme == "https")
	transport.Protocols.SetUnencryptedHTTP2(w.differs.HTTP2 && up.Scheme == "http")
	tb.Cleanup(transport.CloseIdleConnections)
	up.Transport = transport
	return up
}

// countingConn counts the bytes that are read.
type countingConn struct {
	net.Conn
	read *atomic.Int64
}

func (c countingConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.read.Add(int64(n))
	return n, err
}

// talk serves every connection with a handler that also reads the request, and returns
// the address. At the end the test waits for all handlers, which is ten times the grace
// at most, for probes that time out. So the probes have to close their connections.
func talk(tb testing.TB, handle func(conn net.Conn)) (addr string) {
	tb.Helper()
	listener := listen(tb)
	var handlers sync.WaitGroup
	handlers.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			handlers.Go(func() {
				defer conn.Close()
				_ = conn.SetDeadline(time.Now().Add(10 * grace)) // the handler ends at some time
				handle(conn)
			})
		}
	})
	tb.Cleanup(func() {
		listener.Close()
		done := make(chan struct{})
		go func() {
			handlers.Wait()
			close(done)
		}()
		testkit.Wait(tb, done, 11*grace)
	})
	return listener.Addr().String()
}

// untilClosed reads until the client closes the connection.
func untilClosed(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) }

// wantParsed has a kind parse its lines of a Caddyfile. The result is this JSON, which
// another instance of the kind loads, or this error.
func wantParsed[K interface {
	kind
	caddyfile.Unmarshaler
}](tb testing.TB, parsed, loaded K, input, wantJSON, wantErr string,
) {
	tb.Helper()
	if got := text(parsed.UnmarshalCaddyfile(caddyfile.NewTestDispenser(input))); got != wantErr {
		tb.Errorf("%q:\n got the error %q\nwant the error %q", input, got, wantErr)
	}
	if wantErr != "" {
		return
	}
	got, err := json.Marshal(parsed)
	if err != nil || string(got) != wantJSON {
		tb.Errorf("%q: got %s, %v; want %s", input, got, err, wantJSON)
	}
	if err := provision(loaded, string(got)); err != nil {
		tb.Errorf("%q parses as %s, but does not load: %v", input, got, err)
	}
}
