// SPDX-License-Identifier: Apache-2.0

package monitor

import (
	"cmp"
	"context"
	"errors"
	"io"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// overFastCGI sends requests by Caddy's FastCGI transport, with the settings of the
// handler. That transport opens a connection for each request and closes it with the
// body of the answer. It does not end when the context of a request does, so each
// request runs in a goroutine of its own, which ends at its timeout at the latest.
type overFastCGI struct {
	*Route
	newest atomic.Pointer[exchange]
}

// exchange is a request and its answer.
type exchange struct {
	ended chan struct{} // closed when its connection is
}

// afterTimeout is how long after the timeout of a request its connection closes, so that
// the end of the context comes first and is the reason.
const afterTimeout = 20 * time.Millisecond

// maxExchangeWait is how long to wait for a connection at the end of a config.
const maxExchangeWait = time.Second

// wait waits a moment until the connection of the newest request is closed.
func (t *overFastCGI) wait() {
	if x := t.newest.Load(); x != nil {
		select {
		case <-x.ended:
		case <-time.After(maxExchangeWait):
		}
	}
}

// errNoHeader is the error for an upstream that ends an answer before it began. Caddy's
// transport takes that for an empty answer with the status 200.
var errNoHeader = errors.New("the connection was closed before an answer was complete")

// RoundTrip sends a request with what Caddy's transport looks for in it.
func (t *overFastCGI) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx := req.Context()
	over := t.transport.fastCGI // a copy: its timeouts are those of this request
	if end, limited := ctx.Deadline(); limited {
		left := caddy.Duration(max(time.Until(end), 0) + afterTimeout)
		for _, limit := range []*caddy.Duration{&over.DialTimeout, &over.ReadTimeout, &over.WriteTimeout} {
			if *limit <= 0 || *limit > left {
				*limit = left
			}
		}
	}
	sent := t.prepare(req)
	type answer struct {
		resp *http.Response
		err  error
	}
	answered := make(chan answer, 1)
	reader, writer := io.Pipe()
	x := &exchange{ended: make(chan struct{})}
	t.newest.Store(x)
	began := time.Now()
	go func() {
		defer close(x.ended)
		resp, err := over.RoundTrip(sent)
		if err != nil {
			if _, dialing := errors.AsType[reverseproxy.DialError](err); dialing && time.Since(began) >= time.Duration(over.DialTimeout) {
				err = dialTimeoutError{err}
			}
			answered <- answer{nil, err}
			return
		}
		body := resp.Body
		defer body.Close()
		if len(resp.Header) == 0 {
			answered <- answer{nil, errNoHeader}
			return
		}
		resp.Body = nil
		answered <- answer{resp, nil}
		_, err = io.CopyBuffer(writer, body, make([]byte, maxFastCGIChunk))
		writer.CloseWithError(err) // without an error, the end of the body
	}()
	// Both ends of the pipe: what is read from now on is the reason, and nothing more is
	// written.
	stop := context.AfterFunc(ctx, func() { writer.CloseWithError(ctx.Err()) })
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case a := <-answered:
		if a.err != nil {
			stop()
			return nil, a.err
		}
		a.resp.Body = fastCGIBody{reader, stop}
		return a.resp, nil
	}
}

// maxFastCGIChunk is how many bytes of an answer are passed on at once.
const maxFastCGIChunk = 4 << 10

// prepare returns a request as Caddy's server would pass it to the handler. Its client is
// this host.
func (t *overFastCGI) prepare(req *http.Request) *http.Request {
	ctx := context.WithValue(req.Context(), caddy.CtxKey("reverse_proxy.dial_info"), t.at)
	sent := req.Clone(ctx)
	sent.Host = cmp.Or(sent.Host, sent.URL.Host)
	sent.URL.Scheme, sent.URL.Host = t.Scheme, t.Host               // whatever a redirect named
	sent.Proto, sent.ProtoMajor, sent.ProtoMinor = "HTTP/1.1", 1, 1 // empty after a redirect
	sent.RemoteAddr = "127.0.0.1:0"
	sent.RequestURI = sent.URL.RequestURI()
	return caddyhttp.PrepareRequest(sent, t.addPlaceholders(caddy.NewReplacer()), nil, new(caddyhttp.Server))
}

// fastCGIBody is the body of an answer.
type fastCGIBody struct {
	*io.PipeReader
	stop func() bool // the end of the context no longer ends the body
}

// Close ends the body, and the connection as soon as the upstream has sent something
// more, ended the answer, or let the timeout pass.
func (b fastCGIBody) Close() error {
	b.stop()
	return b.PipeReader.Close()
}

// checkFastCGI reports why a check cannot work over FastCGI.
func checkFastCGI(check *Check) error {
	if check.KeepConnection {
		return errors.New("keep_connection has no meaning over FastCGI, where each request has a connection of its own")
	}
	if check.ProxyProtocol != "" && check.ProxyProtocol != "off" {
		return errors.New("proxy_protocol has no meaning over FastCGI, which requests use without it; leave it out, or set scheme and port of an HTTP port")
	}
	return nil
}
