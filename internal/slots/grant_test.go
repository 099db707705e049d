// SPDX-License-Identifier: Apache-2.0

package slots

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// granted is a grant of a slot at an address of its own.
type granted struct {
	*Grant
	t       *testing.T
	address *Address
	end     context.CancelFunc // of the request
	res     *http.Response
}

// newGranted returns a grant whose round trip is yet to begin.
func newGranted(t *testing.T) *granted {
	t.Helper()
	g := &granted{Grant: new(Grant), t: t, address: open(t, "a")}
	ctx, end := context.WithCancel(context.Background())
	g.end = end
	if !g.address.Take(1) {
		t.Fatal("there is no slot")
	}
	g.Hold(ctx, g.address)
	return g
}

// answered ends the round trip with an answer.
func (g *granted) answered(status int, body io.ReadCloser) {
	g.res = &http.Response{StatusCode: status, Body: body}
	g.Answered(g.res)
}

// read reads from the body of the answer.
func (g *granted) read(n int) error {
	_, err := g.res.Body.Read(make([]byte, n))
	return err
}

// inUse returns how many slots are in use once all that happened has had its effect.
func (g *granted) inUse() int {
	synctest.Wait()
	return g.address.InUse()
}

// body is the body of an answer that counts how often it is closed.
type body struct {
	io.Reader
	closed int
}

// Close counts.
func (b *body) Close() error {
	b.closed++
	return nil
}

// text returns a body.
func text(s string) *body { return &body{Reader: strings.NewReader(s)} }

// connection is the body of an answer that switches protocols.
type connection struct {
	*body
	written strings.Builder
}

// Write records what is written.
func (c *connection) Write(p []byte) (int, error) { return c.written.Write(p) }

// halfConnection is one that can be closed by halves.
type halfConnection struct {
	*connection
	closedHalf int
}

// CloseWrite counts.
func (c *halfConnection) CloseWrite() error {
	c.closedHalf++
	return nil
}

// A slot is given back once: at the first event after which nothing is outstanding at the
// upstream. What follows gives back nothing.
func TestGrant_IsGivenBackOnce(t *testing.T) {
	answer := func(g *granted) { g.answered(http.StatusOK, text("text")) }
	upgrade := func(g *granted) { g.answered(http.StatusSwitchingProtocols, &connection{body: text("text")}) }
	for _, tc := range []struct {
		event   string
		before  []func(*granted) // after each of these it is held
		happens func(*granted)
	}{
		{"it is selected again without a round trip", nil, func(g *granted) { g.Free() }},
		{"the round trip has failed", nil, func(g *granted) { g.End() }},
		{"the answer has no body", nil, func(g *granted) { g.answered(http.StatusOK, http.NoBody) }},
		{"the answer has a nil body", nil, func(g *granted) { g.answered(http.StatusOK, nil) }},
		{"the body is at its end", []func(*granted){answer, func(g *granted) { _ = g.read(4) }}, func(g *granted) { _ = g.read(4) }},
		{"the end comes with the last bytes", []func(*granted){
			func(g *granted) {
				g.answered(http.StatusOK, &body{Reader: iotest.DataErrReader(strings.NewReader("text"))})
			},
			func(g *granted) { _ = g.read(3) },
		}, func(g *granted) { _ = g.read(1) }},
		{"reading fails", []func(*granted){
			func(g *granted) {
				g.answered(http.StatusOK, &body{Reader: io.MultiReader(strings.NewReader("te"), iotest.ErrReader(errors.New("reset")))})
			},
			func(g *granted) { _ = g.read(2) },
		}, func(g *granted) { _ = g.read(2) }},
		{"the body is closed", []func(*granted){answer, func(g *granted) { _ = g.read(2) }}, func(g *granted) { _ = g.res.Body.Close() }},
		{"a connection is closed", []func(*granted){
			upgrade, func(g *granted) { _ = g.read(4) },
			func(g *granted) { _ = g.read(4) }, // the end of what the upstream sends
		}, func(g *granted) { _ = g.res.Body.Close() }},
		{"a connection that cannot be written to is closed", []func(*granted){
			func(g *granted) { g.answered(http.StatusSwitchingProtocols, text("text")) },
		}, func(g *granted) { _ = g.res.Body.Close() }},
		{"it is selected again while the answer is open", []func(*granted){answer}, func(g *granted) { g.Free() }},
		{"the request ends while the answer is open", []func(*granted){answer}, func(g *granted) { g.end() }},
		{"the request ends while a connection is open", []func(*granted){upgrade}, func(g *granted) { g.end() }},
		{"the request ends, and then the round trip fails", []func(*granted){func(g *granted) { g.end() }}, func(g *granted) { g.End() }},
		{"the request ends, and then the round trip gets an answer", []func(*granted){func(g *granted) { g.end() }}, answer},
	} {
		t.Run(tc.event, func(t *testing.T) {
			testkit.Bubble(t, func(t *testing.T) {
				g := newGranted(t)
				if !g.Held() {
					t.Error("it is not held")
				}
				if !strings.Contains(tc.event, "without a round trip") {
					g.Begin()
				}
				for i, step := range tc.before {
					if step(g); g.inUse() != 1 || !g.Held() {
						t.Fatalf("%d slots in use after step %d", g.inUse(), i)
					}
				}
				if tc.happens(g); g.inUse() != 0 || g.Held() {
					t.Fatalf("%d slots in use afterwards", g.inUse())
				}
				g.address.Take(1) // by another request
				if g.res != nil && g.res.Body != nil {
					_ = g.read(4)
					_ = g.res.Body.Close()
					_ = g.res.Body.Close()
				}
				g.Free()
				g.End()
				g.end()
				if g.inUse() != 1 {
					t.Errorf("%d slots in use, want that of the other request", g.inUse())
				}
				g.address.Free()
			})
		})
	}
}

// A request that ends without a round trip gives its slot back, also if it has ended before.
func TestGrant_TheRequestEndsWithoutARoundTrip(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		g := newGranted(t)
		if g.inUse() != 1 {
			t.Error("it has no slot")
		}
		g.end()
		if g.inUse() != 0 {
			t.Error("the slot is still in use")
		}
		g.Begin() // it may follow all the same
		g.answered(http.StatusOK, text("text"))
		_ = g.res.Body.Close()
		if g.inUse() != 0 {
			t.Error("it was given back again")
		}
	})
	testkit.Bubble(t, func(t *testing.T) {
		a := open(t, "b")
		ctx, end := context.WithCancel(context.Background())
		end()
		a.Take(1)
		new(Grant).Hold(ctx, a)
		if synctest.Wait(); a.InUse() != 0 {
			t.Error("the request had ended before, and the slot is in use")
		}
	})
}

// The end of a request frees no slot of another one, although what watches it is used again.
func TestGrant_FollowsItsOwnRequest(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		first := newGranted(t)
		for range 10 {
			first.Free()
			next := &granted{Grant: new(Grant), t: t, address: first.address}
			ctx, end := context.WithCancel(context.Background())
			next.end = end
			next.address.Take(1)
			next.Hold(ctx, next.address)
			if first.end(); next.inUse() != 1 {
				t.Fatal("the end of another request freed the slot")
			}
			first = next
		}
		if first.end(); first.inUse() != 0 {
			t.Error("the end of its own request did not free the slot")
		}
	})
}

// All ends at once give it back once.
func TestGrant_EndsAtOnce(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		a := open(t, "a")
		for range 500 {
			ctx, end := context.WithCancel(context.Background())
			if !a.Take(1) {
				t.Fatal("the slot of the request before is in use")
			}
			g := new(Grant)
			g.Hold(ctx, a)
			g.Begin()
			res := &http.Response{StatusCode: http.StatusSwitchingProtocols, Body: &connection{body: text("text")}}
			g.Answered(res)
			for _, f := range []func(){end, g.Free, func() { _ = res.Body.Close() }, func() { _ = res.Body.Close() }} {
				go f()
			}
			if synctest.Wait(); a.InUse() != 0 {
				t.Fatalf("%d slots in use", a.InUse())
			}
		}
	})
}

// A connection after an answer that switches protocols is as it was: it is written to, its
// sending half is closed if it can be, and it is closed once.
func TestGrant_ConnectionsAreAsTheyWere(t *testing.T) {
	for _, half := range []bool{false, true} {
		testkit.Bubble(t, func(t *testing.T) {
			g := newGranted(t)
			g.Begin()
			c := &connection{body: text("from the upstream")}
			inner := &halfConnection{connection: c}
			if half {
				g.answered(http.StatusSwitchingProtocols, inner)
			} else {
				g.answered(http.StatusSwitchingProtocols, c)
			}
			conn, ok := g.res.Body.(io.ReadWriteCloser)
			if !ok {
				t.Fatalf("%T cannot be written to", g.res.Body)
			}
			if _, err := io.WriteString(conn, "to the upstream"); err != nil || c.written.String() != "to the upstream" {
				t.Errorf("wrote %q, error %v", c.written.String(), err)
			}
			closer, ok := conn.(interface{ CloseWrite() error })
			if ok != half {
				t.Fatalf("its half can be closed: %v, want %v", ok, half)
			}
			if half {
				if err := closer.CloseWrite(); err != nil || inner.closedHalf != 1 || c.closed != 0 {
					t.Errorf("half closed %d times, closed %d times, error %v", inner.closedHalf, c.closed, err)
				}
			}
			if got, err := io.ReadAll(conn); string(got) != "from the upstream" || err != nil {
				t.Errorf("read %q, error %v", got, err)
			}
			if g.inUse() != 1 {
				t.Error("the slot is free although the connection is open")
			}
			for range 3 {
				if err := conn.Close(); err != nil {
					t.Error(err)
				}
			}
			if g.inUse() != 0 || c.closed != 1 {
				t.Errorf("%d slots in use, closed %d times", g.inUse(), c.closed)
			}
			g.end()
		})
	}
}

// A body is left as it is if the request has no slot.
func TestGrant_WithoutASlotNothingChanges(t *testing.T) {
	g := new(Grant)
	g.Begin()
	for _, status := range []int{http.StatusOK, http.StatusSwitchingProtocols} {
		b := &connection{body: text("text")}
		res := &http.Response{StatusCode: status, Body: b}
		if g.Answered(res); res.Body != io.ReadCloser(b) {
			t.Errorf("status %d: the body is a %T", status, res.Body)
		}
	}
	g.End()
	g.Free()
}
