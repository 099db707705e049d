// SPDX-License-Identifier: Apache-2.0

package conn

import (
	"bufio"
	"errors"
	"io"
	"math"
	"net"
	"net/http"
	"sync"
	"time"
)

const (
	// bufferSize is the size of the buffer that an answer is read through, in bytes.
	bufferSize = 4 << 10
)

// HTTP1 is a plain HTTP/1.1 connection. net/http gives each connection two goroutines
// and two buffers; this one has neither between requests.
//
// It does not wait for "100 Continue", and sends a whole request before it reads the
// answer. So it is for small bodies.
type HTTP1 struct {
	// Conn is the connection, on which nothing was sent.
	Conn net.Conn
	// MaxHeader is how many bytes the header of an answer, with those of interim
	// ones, may have.
	MaxHeader int64
	// HeaderTimeout is how long to wait for the header of an answer after the
	// request was sent. 0: as long as the context lasts.
	HeaderTimeout time.Duration

	expired bool  // no further request can be sent
	left    int64 // how much of an answer may still be read, in bytes
}

var readers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, bufferSize) }}

var errLongHeader = errors.New("the header of the answer is too long")

// RoundTrip sends the request and returns the answer once its header is there.
// Closing the connection ends it. The connection closes when the body is closed
// before its end.
func (c *HTTP1) RoundTrip(req *http.Request) (*http.Response, error) {
	c.expired = true // until the answer was read to its end
	// A server that rejects a request need not read all of it. So the answer is read
	// even if sending failed.
	sendErr, err := c.send(req)
	if err != nil {
		return nil, err
	}
	if c.HeaderTimeout > 0 {
		_ = c.Conn.SetReadDeadline(time.Now().Add(c.HeaderTimeout))
	}
	c.left = c.MaxHeader
	r := readers.Get().(*bufio.Reader)
	r.Reset((*limited)(c))
	resp, err := readAnswer(r, req)
	if err != nil {
		release(r)
		switch {
		case c.left <= 0:
			err = errLongHeader
		case sendErr != nil:
			err = sendErr
		case errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF):
			err = errors.New("the connection was closed before an answer was complete")
		}
		return nil, err
	}
	if c.HeaderTimeout > 0 {
		_ = c.Conn.SetReadDeadline(time.Time{})
	}
	c.left = math.MaxInt64
	last := sendErr != nil || req.Close || resp.Close || resp.StatusCode == http.StatusSwitchingProtocols
	resp.Body = &body{conn: c, from: resp.Body, buffer: r, last: last, read: resp.Body == http.NoBody}
	return resp, nil
}

// send sends the request. sendErr is an error of the connection, and err any other, such
// as that the body of the request cannot be read.
func (c *HTTP1) send(req *http.Request) (sendErr, err error) {
	// only Write is visible, so that no error of the body counts as one of the connection
	w := bufio.NewWriterSize(struct{ io.Writer }{c.Conn}, 1<<10)
	err = req.Write(w)
	if sendErr = w.Flush(); sendErr != nil {
		return sendErr, nil
	}
	return nil, err
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

// Usable reports whether another request can be sent: the last answer was read to its
// end, and the other side has neither closed the connection nor sent anything since.
func (c *HTTP1) Usable() bool {
	c.expired = c.expired || !isIdle(c.Conn)
	return !c.expired
}

// Close closes the connection.
func (c *HTTP1) Close() error { return c.Conn.Close() }

// limited reads from the connection, up to a limit, after which it ends as a closed
// connection does.
type limited HTTP1

// Read reads no more than the limit leaves.
func (l *limited) Read(p []byte) (n int, err error) {
	if l.left <= 0 {
		return 0, io.EOF
	}
	if int64(len(p)) > l.left {
		p = p[:l.left]
	}
	n, err = l.Conn.Read(p)
	l.left -= int64(n)
	return n, err
}

// body is the body of an answer.
type body struct {
	conn   *HTTP1
	from   io.ReadCloser
	buffer *bufio.Reader // nil when the body is closed
	read   bool          // to its end
	last   bool          // no other request can follow
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
	reusable := b.read && !b.last && b.buffer.Buffered() == 0
	release(b.buffer)
	b.buffer = nil
	if !reusable {
		return b.conn.Close()
	}
	b.conn.expired = false
	return nil
}
