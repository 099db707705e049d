// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"maps"
	"math"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"
)

// bufferSize is that of the buffers that requests borrow, in bytes.
const bufferSize = 4 << 10

// HTTP1 is a plain HTTP/1.1 connection. In place of the two goroutines and the
// buffers that net/http gives each, it has what it needs while a request is
// under way only: between requests it is a socket, and the last request as it was sent.
//
// It does not wait for "100 Continue", and sends a whole request before it looks
// at the answer; so it is for small bodies.
type HTTP1 struct {
	// Conn is the connection, on which nothing was sent.
	Conn net.Conn
	// MaxHeader is how many bytes the header of an answer, with those of interim
	// ones, may have.
	MaxHeader int64
	// HeaderTimeout is how long to wait for the header of an answer after the
	// request was sent. 0: as long as the context lasts.
	HeaderTimeout time.Duration

	over    bool     // no further request can be sent
	last    rendered // the request before
	socket  *socket  // of Conn; nil before the first request, and where it has none
	unsent  []byte   // a request that is sent when its answer is read
	sendErr error    // why one could not be sent
	left    int64    // of an answer to be read
}

// rendered is a request without a body, as it is sent: the next one is mostly the same.
type rendered struct {
	method, host string
	url          url.URL
	header       http.Header
	text         []byte
}

// is reports whether req, which has no body, is the same.
func (r *rendered) is(req *http.Request) bool {
	return r.text != nil && req.Method == r.method && req.Host == r.host && *req.URL == r.url &&
		!req.Close && req.ContentLength == 0 && req.TransferEncoding == nil && req.Trailer == nil &&
		maps.EqualFunc(req.Header, r.header, slices.Equal)
}

var readers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, bufferSize) }}

var errLongHeader = errors.New("the header of the answer is too long")

// RoundTrip sends the request and returns the answer once its header is there.
// Closing the connection ends it. The connection closes when the body is closed
// before its end.
func (c *HTTP1) RoundTrip(req *http.Request) (*http.Response, error) {
	c.over = true // unless all goes well
	if err := c.send(req); err != nil {
		return nil, err
	}

	// one that rejects a request need not read it all before it says so
	c.left = c.MaxHeader
	r := readers.Get().(*bufio.Reader)
	r.Reset((*answers)(c))
	resp, err := readAnswer(r, req)
	if err != nil {
		release(r)
		switch {
		case c.left <= 0:
			err = errLongHeader
		case c.sendErr != nil:
			err = c.sendErr
		case errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF):
			err = errors.New("the connection was closed before an answer was complete")
		}
		return nil, err
	}
	if c.HeaderTimeout > 0 {
		_ = c.Conn.SetReadDeadline(time.Time{})
	}
	c.left = math.MaxInt64
	over := c.sendErr != nil || req.Close || resp.Close || resp.StatusCode == http.StatusSwitchingProtocols
	resp.Body = &body{conn: c, from: resp.Body, buffer: r, over: over, read: resp.Body == http.NoBody}
	return resp, nil
}

// send sends a request that has a body, and has any other sent later, when its answer
// is read. It returns why a request cannot be put into bytes, such as that its body
// cannot be read.
func (c *HTTP1) send(req *http.Request) error {
	c.sendErr = nil
	if c.socket == nil && !req.Close { // it is for the requests that follow
		c.socket = newSocket(c.Conn)
	}
	if req.Body != nil && req.Body != http.NoBody {
		w := bufio.NewWriterSize(struct{ io.Writer }{c.Conn}, bufferSize) // so that its errors are those of the connection only
		err := req.Write(w)
		if c.sendErr = w.Flush(); c.sendErr != nil {
			err = nil
		}
		c.awaitHeader()
		return err
	}
	if !c.last.is(req) {
		var text bytes.Buffer
		if err := req.Write(&text); err != nil {
			return err
		}
		if req.Close {
			c.unsent = text.Bytes()
			return nil
		}
		c.last = rendered{method: req.Method, host: req.Host, url: *req.URL, header: req.Header.Clone(), text: text.Bytes()}
	}
	c.unsent = c.last.text
	return nil
}

// awaitHeader begins the time that an answer may take.
func (c *HTTP1) awaitHeader() {
	if c.HeaderTimeout > 0 {
		_ = c.Conn.SetReadDeadline(time.Now().Add(c.HeaderTimeout))
	}
}

// readAnswer reads the header of the answer, past those of interim ones. However many
// there are, they count towards the limit of the header, as they do in net/http.
func readAnswer(r *bufio.Reader, req *http.Request) (*http.Response, error) {
	for {
		resp, err := http.ReadResponse(r, req)
		if err != nil {
			return nil, err
		}
		if resp.StatusCode/100 != 1 || resp.StatusCode == http.StatusSwitchingProtocols {
			return resp, nil
		}
	}
}

func release(r *bufio.Reader) {
	r.Reset(nil)
	readers.Put(r)
}

// Usable reports whether another request can be sent: the last answer was read
// to its end, and the other side has neither closed the connection nor sent
// what nobody asked for.
func (c *HTTP1) Usable() bool { return !c.over && c.socket != nil && c.socket.quiet() }

// Close closes the connection.
func (c *HTTP1) Close() error { return c.Conn.Close() }

// answers is what answers are read from: the connection, up to a limit, which ends
// like the connection would.
type answers HTTP1

// Read reads what the limit has left.
func (a *answers) Read(p []byte) (n int, err error) {
	c := (*HTTP1)(a)
	if c.left <= 0 {
		return 0, io.EOF
	}
	if int64(len(p)) > c.left {
		p = p[:c.left]
	}
	if c.unsent != nil {
		n, err = c.exchange(p)
	} else {
		n, err = c.Conn.Read(p)
	}
	c.left -= int64(n)
	return n, err
}

// exchange sends the request and reads the beginning of its answer.
func (c *HTTP1) exchange(p []byte) (int, error) {
	out := c.unsent
	c.unsent = nil
	if c.socket != nil && c.socket.plain {
		c.awaitHeader()
		sent, got, err := c.socket.exchange(out, p)
		if sent < len(out) {
			c.sendErr, err = err, nil
		}
		if got > 0 || err != nil {
			return got, err
		}
		out = out[sent:]
	}
	if len(out) > 0 && c.sendErr == nil {
		_, c.sendErr = c.Conn.Write(out)
		c.awaitHeader()
	}
	return c.Conn.Read(p)
}

// body is that of an answer.
type body struct {
	conn   *HTTP1
	from   io.ReadCloser
	buffer *bufio.Reader // nil when closed
	read   bool          // to its end
	over   bool          // no request can follow, however this ends
}

// Read reads from the body.
func (b *body) Read(p []byte) (int, error) {
	if b.buffer == nil {
		return 0, http.ErrBodyReadAfterClose
	}
	n, err := b.from.Read(p)
	if errors.Is(err, io.EOF) {
		b.read = true
	}
	return n, err
}

// Close leaves the connection ready for another request, or closes it. It must not be
// called while Read is under way.
func (b *body) Close() error {
	if b.buffer == nil {
		return nil
	}
	again := canPeek && b.read && !b.over && b.buffer.Buffered() == 0
	release(b.buffer)
	b.buffer = nil
	if !again {
		return b.conn.Close()
	}
	b.conn.over = false
	return nil
}
