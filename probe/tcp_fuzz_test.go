// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// Whatever bytes come back, in whatever parts, the probe returns, reads no more than 64
// KiB, closes its connection, and passes if the answer contains what is expected.
// Otherwise it has a reason.
func FuzzTCPAnswer(f *testing.F) {
	for _, seed := range []string{
		"",
		"+PONG\r\n",
		"-NOAUTH Authentication required.\r\n",
		"+PO\x00NG",
		"\xff\xfePONG\x00",
		"PON\nPONG",
		"HTTP/1.1 400 Bad Request\r\n\r\n",
		"\x15\x03\x01\x00\x02\x02\x16",
	} {
		f.Add([]byte(seed), uint16(0), uint8(1), true)
		f.Add([]byte(seed), uint16(maxExpected/2), uint8(200), true)
		f.Add([]byte(seed), uint16(3), uint8(3), false)
	}
	f.Add([]byte("PONG"), uint16(maxExpected-4), uint8(255), true)
	f.Add([]byte("PONG"), uint16(maxExpected-3), uint8(255), true)

	// none of these stops to match when more bytes come
	text := loadKind(f, new(TCP), `{"send":"PING\\r\\n","expect":"(?i)pong|^\\+?ok"}`)
	bytes := loadKind(f, new(TCP), `{"expect":"\\x00(?s:.){2}"}`)
	// maxParts bounds the parts of an answer, because the pipe below is slower than a
	// kernel
	const maxParts = 16
	f.Fuzz(func(t *testing.T, answer []byte, before uint16, part uint8, asText bool) {
		p := bytes
		if asText {
			p = text
		}
		answer = append([]byte(strings.Repeat("x", int(before))), answer...)
		size := max(int(part), 1, len(answer)/maxParts)

		var (
			upstream sync.WaitGroup
			read     int
		)
		up := Upstream{Address: "app1:80", Dial: func(context.Context) (net.Conn, error) {
			client, server := net.Pipe()
			upstream.Go(func() {
				defer server.Close()
				if _, err := io.ReadFull(server, make([]byte, len(p.send))); err != nil {
					t.Errorf("the upstream was not asked: %v", err)
				}
				for rest := answer; len(rest) > 0; {
					n, err := server.Write(rest[:min(size, len(rest))])
					if rest = rest[n:]; err != nil {
						return
					}
				}
			})
			return tallyConn{client, &read}, nil
		}}
		err := run(t, p, up, long)
		if errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("waits for an upstream that hung up: %v", err)
		}
		want := p.expect.Match(answer[:min(len(answer), maxExpected)])
		if got := err == nil; got != want {
			t.Errorf("answer %q: got %v, want a pass: %v", answer, err, want)
		}
		if read > maxExpected {
			t.Errorf("%d bytes were read, want %d at most", read, maxExpected)
		}
		if err != nil && len(err.Error()) > 1<<10 {
			t.Errorf("the reason has %d bytes", len(err.Error()))
		}
		closed := make(chan struct{})
		go func() {
			upstream.Wait()
			close(closed)
		}()
		testkit.Wait(t, closed, grace)
	})
}

// tallyConn counts what is read, by one goroutine.
type tallyConn struct {
	net.Conn
	read *int
}

func (c tallyConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	*c.read += n
	return n, err
}
