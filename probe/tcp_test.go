// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

// An upstream that accepts is alive, even if it never says a word. The probe
// sends nothing and leaves no connection behind.
func TestTCPAccepted(t *testing.T) {
	t.Parallel()
	listener := listen(t)
	type received struct {
		data []byte
		err  error
	}
	got := make(chan received, 1)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			got <- received{nil, err}
			return
		}
		defer conn.Close()
		data, err := io.ReadAll(conn) // until the probe hangs up
		got <- received{data, err}
	}()
	up := newUpstream(t, "tcp", listener.Addr().String(), nil)
	var dialed net.Conn // kept, for the runtime closes what nobody refers to
	dial := up.Dial
	up.Dial = func(ctx context.Context) (conn net.Conn, err error) {
		dialed, err = dial(ctx)
		return dialed, err
	}
	t.Cleanup(func() { dialed.Close() })
	if err := run(t, new(TCP), up, long); err != nil {
		t.Errorf("got %v, want a pass", err)
	}
	if r := wait(t, got, grace); r.err != nil || len(r.data) > 0 {
		t.Errorf("the upstream got %q, %v; want nothing but the end of the connection", r.data, r.err)
	}
}

// An upstream that refuses is down, and the reason says so and where.
func TestTCPRefused(t *testing.T) {
	t.Parallel()
	addr := refusing(t)
	err := run(t, new(TCP), newUpstream(t, "tcp", addr, nil), long)
	if err == nil || !strings.Contains(err.Error(), "refused") || !strings.Contains(err.Error(), addr) {
		t.Errorf("got %v, want an error that says that %s refused", err, addr)
	}
}

// A connection that is never completed ends the probe at its deadline. There
// is no portable way to have one on the loopback interface, so the dialer only
// waits; that it is handed the context is what counts.
func TestTCPDeadline(t *testing.T) {
	t.Parallel()
	up := Upstream{Dial: func(ctx context.Context) (net.Conn, error) {
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}}
	if err := run(t, new(TCP), up, short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want %v", err, context.DeadlineExceeded)
	}
}

// A probe that is called off returns at once, not at its deadline.
func TestTCPCanceled(t *testing.T) {
	t.Parallel()
	dialing := make(chan struct{})
	up := Upstream{Dial: func(ctx context.Context) (net.Conn, error) {
		close(dialing)
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}}
	ctx, cancel := context.WithTimeout(t.Context(), 10*grace)
	defer cancel()
	result := start(ctx, new(TCP), up)
	wait(t, dialing, grace)
	cancel()
	if err := wait(t, result, grace); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
}

// Over HTTP/3 a connect tells nothing: the config must not load, rather than
// have a check that always fails or panics.
func TestTCPValidateUpstream(t *testing.T) {
	t.Parallel()
	up := newUpstream(t, "tcp", "127.0.0.1:1", nil)
	up.Transport = nil // FastCGI
	if err := new(TCP).ValidateUpstream(up); err != nil {
		t.Errorf("got %v, want no error: a tcp check needs no HTTP", err)
	}
	up.Address, up.Dial = "app1:443", nil
	want := "a tcp check cannot tell whether app1:443 is alive, which is not reached by connecting to it; use an http check"
	if got := text(new(TCP).ValidateUpstream(up)); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestTCPCaddyfile(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ input, err string }{
		{"tcp", ""},
		{"tcp {\n}", ""},
		{"tcp 8080", "a tcp check takes no argument; got '8080', at Testfile:1"},
		{"tcp /healthz {\n\tinterval 1s\n}", "a tcp check takes no argument; got '/healthz', at Testfile:1"},
		{"tcp {\n\tmethod GET\n}", "unrecognized option 'method': besides the options of every check, a tcp check has send and expect, at Testfile:2"},
	} {
		p := new(TCP)
		if got := text(p.UnmarshalCaddyfile(caddyfile.NewTestDispenser(test.input))); got != test.err {
			t.Errorf("%q: got the error %q, want %q", test.input, got, test.err)
		}
		if got, err := json.Marshal(p); err != nil || string(got) != "{}" {
			t.Errorf("%q: got %s, %v; want {}", test.input, got, err)
		}
	}
}
