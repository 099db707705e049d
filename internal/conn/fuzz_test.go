// SPDX-License-Identifier: Apache-2.0

package conn

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// scripted is a connection that accepts every request and returns an answer in pieces,
// and then the end.
type scripted struct {
	net.Conn // nil: other methods are not called
	answer   *bytes.Reader
	piece    int
}

func (s *scripted) Read(p []byte) (int, error)      { return s.answer.Read(p[:min(len(p), s.piece)]) }
func (s *scripted) Write(p []byte) (int, error)     { return len(p), nil }
func (s *scripted) SetReadDeadline(time.Time) error { return nil }
func (s *scripted) Close() error                    { return nil }

// framed parses an answer by net/http alone. It is whole if its end is known and
// nothing follows it.
func framed(answer []byte, req *http.Request, limit int64) (status int, content string, whole bool) {
	from := bytes.NewReader(answer)
	buffer := bufio.NewReader(from)
	for {
		resp, err := http.ReadResponse(buffer, req)
		if err != nil {
			return 0, "", false
		}
		if resp.StatusCode/100 == 1 && resp.StatusCode != http.StatusSwitchingProtocols {
			continue
		}
		body, err := io.ReadAll(resp.Body)
		rest := buffer.Buffered() + from.Len()
		// whether an answer of exactly the limit is read to its end is not defined
		whole = err == nil && rest == 0 && !resp.Close && int64(len(body)) < limit &&
			resp.StatusCode != http.StatusSwitchingProtocols
		return resp.StatusCode, string(body[:min(int64(len(body)), limit)]), whole
	}
}

// Whatever bytes come, a request returns and its body ends. Another request can follow
// if, and only if, they are one whole answer and nothing more.
func FuzzHTTP1Answer(f *testing.F) {
	const chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n"
	for _, seed := range []string{
		"",
		ready,
		ready + "\n",
		ready + ready,
		ready[:len(ready)-1],
		"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nready",
		"HTTP/1.0 204 No Content\n\n",
		"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nready",
		"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n",
		"HTTP/1.1 200 OK\r\n\r\nready",
		"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nready",
		chunked + "\r\n5;x=y\r\nready\r\n0\r\n\r\n",
		chunked + "\r\n5\r\nready\r\n0\r\n\r\nmore",
		chunked + "\r\n5\r\nready\r\n0\r\n",
		chunked + "\r\nffffffffffffffff\r\nready",
		chunked + "Trailer: A\r\n\r\n5\r\nready\r\n0\r\nA: b\r\n\r\n",
		chunked + "Content-Length: 5\r\n\r\n5\r\nready\r\n0\r\n\r\n",
		"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n" + ready,
		"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n",
		strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 6) + ready,
		"HTTP/1.1 200 OK\r\nA: " + strings.Repeat("b", 5000) + "\r\nContent-Length: 0\r\n\r\n",
		"HTTP/2.0 200 OK\r\n\r\n",
		"\x00\x00\x12\x04\x00\x00\x00\x00\x00",
		"\x15\x03\x01\x00\x02\x02\x16",
	} {
		f.Add([]byte(seed), byte(255), false)
		f.Add([]byte(seed), byte(0), true)
	}
	f.Fuzz(func(t *testing.T, answer []byte, piece byte, head bool) {
		const limit = 64 << 10
		req := request(t, http.MethodGet, "")
		if head {
			req.Method = http.MethodHead
		}
		from := &scripted{answer: bytes.NewReader(answer), piece: 1 + 16*int(piece)}
		conn := &HTTP1{Conn: from, MaxHeader: 4 << 10}
		status, want, whole := framed(answer, req, limit)

		resp, err := conn.RoundTrip(req)
		if err != nil {
			if !conn.expired {
				t.Errorf("usable after %v", err)
			}
			if whole && (!errors.Is(err, errLongHeader) || int64(len(answer)) <= conn.MaxHeader) {
				t.Errorf("%q: %v", answer, err)
			}
			return
		}
		got, err := io.ReadAll(io.LimitReader(resp.Body, limit))
		resp.Body.Close()
		// isIdle finds what is still to be read
		usable := !conn.expired && from.answer.Len() == 0
		if usable != whole {
			// an answer of exactly the limit may be read to its end
			if len(got) != limit {
				t.Errorf("usable: got %t, want %t: %q", usable, whole, answer)
			}
		}
		if resp.StatusCode != status || err == nil && string(got) != want {
			t.Errorf("got %d %q, want %d %q", resp.StatusCode, got, status, want)
		}
	})
}
