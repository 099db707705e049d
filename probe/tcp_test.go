// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// An upstream that accepts a connection is alive, even if it sends nothing. The probe
// sends nothing and closes its connection.
func TestTCP_AcceptedConnectionPasses(t *testing.T) {
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
	var dialed net.Conn // keeps the connection: the runtime closes one without references
	dial := up.Dial
	up.Dial = func(ctx context.Context) (conn net.Conn, err error) {
		dialed, err = dial(ctx)
		return dialed, err
	}
	t.Cleanup(func() { dialed.Close() })
	if err := run(t, new(TCP), up, long); err != nil {
		t.Errorf("got %v, want a pass", err)
	}
	if r := testkit.Wait(t, got, grace); r.err != nil || len(r.data) > 0 {
		t.Errorf("the upstream got %q, %v; want nothing but the end of the connection", r.data, r.err)
	}
}

// An upstream that refuses connections is down, and the reason has its address.
func TestTCP_RefusedConnectionIsTheReason(t *testing.T) {
	t.Parallel()
	addr := testkit.Refused(t)
	err := run(t, new(TCP), newUpstream(t, "tcp", addr, nil), long)
	if err == nil || !strings.Contains(err.Error(), "refused") || !strings.Contains(err.Error(), addr) {
		t.Errorf("got %v, want an error that says that %s refused", err, addr)
	}
}

// A connection attempt that never completes ends at the deadline. There is no portable
// way to have one on the loopback interface, so the dialer only waits for the context
// that it is given.
func TestTCP_ConnectEndsAtTheDeadline(t *testing.T) {
	t.Parallel()
	up := Upstream{Dial: func(ctx context.Context) (net.Conn, error) {
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}}
	if err := run(t, new(TCP), up, short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want %v", err, context.DeadlineExceeded)
	}
}

// A canceled probe returns at once, and not at its deadline.
func TestTCP_CanceledConnectReturnsAtOnce(t *testing.T) {
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
	testkit.Wait(t, dialing, grace)
	cancel()
	if err := testkit.Wait(t, result, grace); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
}

// With HTTP/3 a TCP connection says nothing: the config does not load, instead of a
// check that always fails or panics.
func TestTCP_NeedsADialer(t *testing.T) {
	t.Parallel()
	up := newUpstream(t, "tcp", "127.0.0.1:1", nil)
	up.Transport = nil // FastCGI
	if err := new(TCP).ValidateUpstream(up); err != nil {
		t.Errorf("got %v, want no error: a tcp check needs no HTTP", err)
	}
	up.Address, up.Dial = "app1:443", nil
	want := "a tcp check needs a direct connection, and app1:443 has none; use an http check"
	if got := text(new(TCP).ValidateUpstream(up)); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// The expected text may come in parts, and anywhere in the answer. If it does not come,
// the reason quotes the beginning of the answer.
func TestTCP_ExpectMatchesAnywhere(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		config  string
		request string // what the upstream reads before it answers
		answer  []string
		hold    bool // the upstream never closes the connection
		want    string
	}{
		"an answer": {
			config: `{"send":"PING\\r\\n","expect":"PONG"}`, request: "PING\r\n", answer: []string{"+PONG\r\n"}, hold: true,
		},
		"other bytes before it": {
			config: `{"send":"PING","expect":"PONG"}`, request: "PING", answer: []string{"\x00\xff banner\r\n+PONG"}, hold: true,
		},
		"an answer in parts": {
			config: `{"send":"PING","expect":"PONG"}`, request: "PING", answer: []string{"+", "PO", "N", "G"}, hold: true,
		},
		"hangs up with the answer": {
			config: `{"send":"PING","expect":"PONG"}`, request: "PING", answer: []string{"+PONG"},
		},
		"a banner": {
			config: `{"expect":"^SSH-2\\.0-"}`, answer: []string{"SSH-2.0-OpenSSH_9.9\r\n"}, hold: true,
		},
		"bytes that are no text": {
			config: `{"send":"\\x00\\xff\\x0A","expect":"(?s)^\\x00.$"}`, request: "\x00\xff\n", answer: []string{"\x00\x01"}, hold: true,
		},
		"a wrong answer": {
			config: `{"send":"PING","expect":"PONG"}`, request: "PING", answer: []string{"-ERR \"no\"\r\n\x01"},
			want: `the connection was closed after "-ERR \"no\"\r\n\x01", want 'PONG'`,
		},
		"a part of the answer": {
			config: `{"send":"PING","expect":"PONG"}`, request: "PING", answer: []string{"PO"},
			want: `the connection was closed after "PO", want 'PONG'`,
		},
		"nothing": {
			config: `{"send":"PING","expect":"PONG"}`, request: "PING",
			want: `the connection was closed after nothing, want 'PONG'`,
		},
		"a long wrong answer": {
			config: `{"expect":"PONG"}`, answer: []string{strings.Repeat("a", 64), strings.Repeat("b", 1000)},
			want: `the connection was closed after "` + strings.Repeat("a", 64) + `"…, want 'PONG'`,
		},
		"a case of its own": {
			config: `{"expect":"pong"}`, answer: []string{"PONG"},
			want: `the connection was closed after "PONG", want 'pong'`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			addr := talk(t, func(conn net.Conn) {
				if request := make([]byte, len(test.request)); len(request) > 0 {
					if _, err := io.ReadFull(conn, request); err != nil || string(request) != test.request {
						t.Errorf("the upstream got %q, %v; want %q", request, err, test.request)
					}
				}
				for _, part := range test.answer {
					io.WriteString(conn, part)
				}
				if test.hold {
					untilClosed(conn)
				}
			})
			up := way{addr: addr}.upstream(t)
			if got := text(run(t, loadKind(t, new(TCP), test.config), up, long)); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

// Without a match, a probe waits for more until its deadline. The reason then shows
// what came.
func TestTCP_ExpectWaitsUntilTheDeadline(t *testing.T) {
	t.Parallel()
	for answer, want := range map[string]string{
		"":           "got nothing, want 'PONG'",
		"PON":        `got "PON", want 'PONG'`,
		"-LOADING\n": `got "-LOADING\n", want 'PONG'`,
	} {
		addr := talk(t, func(conn net.Conn) {
			io.WriteString(conn, answer)
			untilClosed(conn)
		})
		began := time.Now()
		err := run(t, loadKind(t, new(TCP), `{"send":"PING","expect":"PONG"}`), way{addr: addr}.upstream(t), short)
		if took := time.Since(began); took < short {
			t.Errorf("answer %q: given up after %s, want %s", answer, took, short)
		}
		if got := text(err); !strings.HasPrefix(got, want+": ") || !strings.HasSuffix(got, "context deadline exceeded") {
			t.Errorf("answer %q: got %q, want %q and that the time was up", answer, got, want)
		}
	}
}

// An upstream that reads nothing does not block a probe that sends more than the kernel
// buffers.
func TestTCP_SendEndsAtTheDeadline(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	addr := talk(t, func(conn net.Conn) {
		_ = conn.(*net.TCPConn).SetReadBuffer(4 << 10)
		<-release
	})
	defer close(release)
	p := &TCP{send: make([]byte, 32<<20)}
	err := run(t, p, way{addr: addr}.upstream(t), short)
	if got := text(err); !strings.HasPrefix(got, "sending: ") || !strings.HasSuffix(got, "context deadline exceeded") {
		t.Errorf("got %q, want that the time for sending was up", got)
	}
}

// If nothing is expected, the text is sent and the probe does not wait.
func TestTCP_SendWithoutExpectDoesNotWait(t *testing.T) {
	t.Parallel()
	got := make(chan string, 1)
	addr := talk(t, func(conn net.Conn) {
		data, _ := io.ReadAll(conn) // until the probe hangs up
		got <- string(data)
	})
	if err := run(t, loadKind(t, new(TCP), `{"send":"QUIT\\r\\n"}`), way{addr: addr}.upstream(t), long); err != nil {
		t.Errorf("got %v, want a pass", err)
	}
	if got, want := testkit.Wait(t, got, grace), "QUIT\r\n"; got != want {
		t.Errorf("the upstream got %q, want %q", got, want)
	}
}

// No more than 64 KiB are read, and they have to contain the expected text: an endless
// answer takes neither memory nor time.
func TestTCP_ExpectReadsABoundedAnswer(t *testing.T) {
	t.Parallel()
	const limit = 64 << 10
	want := `got "` + strings.Repeat("x", 64) + `"…, which does not match 'PONG' in its first 64 KiB`
	for name, test := range map[string]struct {
		before int // bytes before PONG; negative if it never comes
		want   string
	}{
		"at the end of it": {limit - len("PONG"), ""},
		"a byte too late":  {limit - len("PONG") + 1, want},
		"endless":          {-1, want},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			addr := talk(t, func(conn net.Conn) {
				if test.before >= 0 {
					io.WriteString(conn, strings.Repeat("x", test.before)+"PONG")
				}
				endless("x", strings.Repeat("x", 16<<10))(conn, nil)
			})
			var read atomic.Int64
			err := run(t, loadKind(t, new(TCP), `{"expect":"PONG"}`), way{addr: addr, read: &read}.upstream(t), long)
			if got := text(err); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
			if got := read.Load(); got != limit {
				t.Errorf("%d bytes were read, want %d", got, limit)
			}
		})
	}
}

// A probe that is canceled while it waits for an answer returns at once, and closes its
// connection.
func TestTCP_CanceledExpectReturnsAtOnce(t *testing.T) {
	t.Parallel()
	asked, left := make(chan struct{}), make(chan struct{})
	addr := talk(t, func(conn net.Conn) {
		io.ReadFull(conn, make([]byte, len("PING")))
		close(asked)
		untilClosed(conn)
		close(left)
	})
	ctx, cancel := context.WithTimeout(t.Context(), 10*grace)
	defer cancel()
	result := start(ctx, loadKind(t, new(TCP), `{"send":"PING","expect":"PONG"}`), way{addr: addr}.upstream(t))
	testkit.Wait(t, asked, grace)
	cancel()
	if err := testkit.Wait(t, result, grace); err == nil {
		t.Error("got a pass, want an error")
	}
	testkit.Wait(t, left, grace)
}

// A probe closes its connection, however it ends.
func TestTCP_ConnectionIsClosed(t *testing.T) {
	t.Parallel()
	for config, answer := range map[string]string{
		`{}`:                             "",
		`{"send":"PING"}`:                "",
		`{"send":"PING","expect":"x"}`:   "x",    // passes
		`{"send":"PING","expect":"y"}`:   "x",    // times out
		`{"expect":"y","send":"\\x00y"}`: "\x00", // times out
	} {
		left := make(chan struct{})
		addr := talk(t, func(conn net.Conn) {
			io.WriteString(conn, answer)
			untilClosed(conn)
			close(left)
		})
		up := way{addr: addr}.upstream(t)
		var dialed net.Conn // keeps the connection: the runtime closes one without references
		dial := up.Dial
		up.Dial = func(ctx context.Context) (conn net.Conn, err error) {
			dialed, err = dial(ctx)
			return dialed, err
		}
		run(t, loadKind(t, new(TCP), config), up, short)
		select {
		case <-left:
		case <-time.After(grace):
			t.Errorf("%s: the connection is left open", config)
		}
		dialed.Close()
	}
}

// Escapes become bytes, and nothing else does. Placeholders are replaced once, when the
// config is loaded; their values are not changed.
func TestTCP_SendReplacesEscapesAndPlaceholders(t *testing.T) {
	t.Setenv("PROBE_WORD", `a\n{env.PROBE_OTHER}`)
	t.Setenv("PROBE_OTHER", "other")
	for _, test := range []struct{ send, want string }{
		{`PING\r\n`, "PING\r\n"},
		{`\t\\\x00\xff\xFf\x41`, "\t\\\x00\xff\xffA"},
		{`\\r\\x41`, `\r\x41`},
		{"PING\r\n", "PING\r\n"}, // possible in JSON
		{`{"json": {"a": [1]}}`, `{"json": {"a": [1]}}`},
		{`{`, `{`},
		{`}`, `}`},
		{`\\{x\\}`, `\{x\}`},
		{`{env.PROBE_OTHER}\r\n`, "other\r\n"},
		{`<{env.PROBE_WORD}>`, `<a\n{env.PROBE_OTHER}>`},
		{`\xff{env.PROBE_OTHER}\xff`, "\xffother\xff"},
		{`{env.PROBE_UNSET}x`, "x"},
		{`größe`, "größe"},
	} {
		config, err := json.Marshal(TCP{Send: test.send})
		if err != nil {
			t.Fatal(err)
		}
		p := loadKind(t, new(TCP), string(config))
		if got := string(p.send); got != test.want {
			t.Errorf("%s: sends %q, want %q", test.send, got, test.want)
		}
	}
}

// A regular expression may contain global placeholders, and braces of its own.
func TestTCP_ExpectMayHavePlaceholdersAndBraces(t *testing.T) {
	t.Setenv("PROBE_WORD", "ready")
	for _, test := range []struct {
		expect string
		yes    string // what matches
		no     string // what does not
	}{
		{`^{env.PROBE_WORD}$`, "ready", "{env.PROBE_WORD}"},
		{`^a{2,3}$`, "aa", "a{2,3}"},
		{`^\{ok\}$`, "{ok}", `\{ok\}`},
		{`^\x00\xff$`, "\x00\u00ff", "\x00"},
	} {
		config, err := json.Marshal(TCP{Expect: test.expect})
		if err != nil {
			t.Fatal(err)
		}
		p := loadKind(t, new(TCP), string(config))
		if !p.expect.MatchString(test.yes) || p.expect.MatchString(test.no) {
			t.Errorf("%s is %s: want a match of %q and none of %q", test.expect, p.expect, test.yes, test.no)
		}
	}
}

// What a Caddyfile cannot express is an error in JSON, too.
func TestTCP_ProvisionRejectsInvalidConfig(t *testing.T) {
	t.Parallel()
	const escapes = `send knows the escapes \r, \n, \t, \\ and \x00 to \xff; got `
	for _, test := range []struct{ config, want string }{
		{`{"send":"\\q"}`, escapes + `'\q'`},
		{`{"send":"a\\"}`, escapes + `'\'`},
		{`{"expect":"("}`, "expect must be a regular expression in RE2 syntax: error parsing regexp: missing closing ): `(`"},
		{`{"expect":"{env.PROBE_UNSET}"}`, "expect must not be empty, as it is with its placeholders replaced"},
		{`{"send":"{http.request.host}"}`, "send: unrecognized placeholder {http.request.host}" + onlyGlobal},
		{`{"expect":"{http.request.host}"}`, "expect: unrecognized placeholder {http.request.host}" + onlyGlobal},
		{`{"sned":""}`, `json: unknown field "sned"`},
	} {
		if got := text(provision(new(TCP), test.config)); got != test.want {
			t.Errorf("%s: got %q, want %q", test.config, got, test.want)
		}
	}
}

// Every option has its JSON field, as written. Errors have file and line. What parses
// also loads.
func TestTCP_CaddyfileGivesJSONThatLoads(t *testing.T) {
	t.Setenv("PROBE_WORD", "ready")
	const (
		known   = ": " + everyCheck + "a tcp check has send and expect"
		escapes = `send knows the escapes \r, \n, \t, \\ and \x00 to \xff; got `
		sends   = `send takes one text, like "PING\r\n"; put it into quotes if it has spaces, at Testfile:2`
		expects = "expect takes one regular expression; put it into quotes if it has spaces, at Testfile:2"
	)
	for _, test := range []struct{ input, want, err string }{
		{"tcp", `{}`, ""},
		{"tcp {\n}", `{}`, ""},
		{"tcp {\n\tsend PING\n}", `{"send":"PING"}`, ""},
		{"tcp {\n\tsend \"PING\\r\\n\"\n\texpect `\\+PONG`\n}", `{"send":"PING\\r\\n","expect":"\\+PONG"}`, ""},
		{"tcp {\n\texpect ^SSH-\n\tsend \"a b\\t\\\\\\x00\\xfF\"\n}", `{"send":"a b\\t\\\\\\x00\\xfF","expect":"^SSH-"}`, ""},
		{"tcp {\n\tsend {env.PROBE_WORD}\n\texpect {env.PROBE_WORD}\n}", `{"send":"{env.PROBE_WORD}","expect":"{env.PROBE_WORD}"}`, ""},

		{"tcp 8080", `{}`, "a tcp check takes no argument; got '8080', at Testfile:1"},
		{"tcp /healthz {\n\tinterval 1s\n}", `{}`, "a tcp check takes no argument; got '/healthz', at Testfile:1"},
		{"tcp {\n\tmethod GET\n}", `{}`, "unrecognized option 'method'" + known + ", at Testfile:2"},

		{"tcp {\n\tsend\n}", `{}`, sends},
		{"tcp {\n\tsend \"\"\n}", `{}`, sends},
		{"tcp {\n\tsend PING PONG\n}", "", sends},
		{"tcp {\n\tsend `\\q`\n}", "", escapes + `'\q', at Testfile:2`},
		{"tcp {\n\tsend `\\`\n}", "", escapes + `'\', at Testfile:2`},
		{"tcp {\n\tsend `\\0`\n}", "", escapes + `'\0', at Testfile:2`},
		{"tcp {\n\tsend `\\f`\n}", "", escapes + `'\f', at Testfile:2`}, // not 15
		{"tcp {\n\tsend `\\R`\n}", "", escapes + `'\R', at Testfile:2`},
		{"tcp {\n\tsend `\\x`\n}", "", escapes + `'\x', at Testfile:2`},
		{"tcp {\n\tsend `\\x4`\n}", "", escapes + `'\x4', at Testfile:2`},
		{"tcp {\n\tsend `\\xg0`\n}", "", escapes + `'\xg0', at Testfile:2`},
		{"tcp {\n\tsend `\\x+1`\n}", "", escapes + `'\x+1', at Testfile:2`},
		{"tcp {\n\tsend `\\x_1`\n}", "", escapes + `'\x_1', at Testfile:2`},
		{"tcp {\n\tsend `\\u0041`\n}", "", escapes + `'\u', at Testfile:2`},
		{"tcp {\n\tsend a\n\tsend a\n}", "", "option 'send' is given twice, at Testfile:3"},

		{"tcp {\n\texpect\n}", `{}`, expects},
		{"tcp {\n\texpect all is well\n}", "", expects},
		{"tcp {\n\texpect \"\"\n}", `{}`, "expect must not be empty: it would match anything, at Testfile:2"},
		{"tcp {\n\tsend a\n\texpect (\n}", "", "expect must be a regular expression in RE2 syntax: error parsing regexp: missing closing ): `(`, at Testfile:3"},
		{"tcp {\n\texpect a\n\texpect a\n}", "", "option 'expect' is given twice, at Testfile:3"},
	} {
		p := new(TCP)
		if got := text(p.UnmarshalCaddyfile(caddyfile.NewTestDispenser(test.input))); got != test.err {
			t.Errorf("%q:\n got the error %q\nwant the error %q", test.input, got, test.err)
		}
		if test.err != "" && test.want == "" {
			continue // part of it may have been read
		}
		got, err := json.Marshal(p)
		if err != nil || string(got) != test.want {
			t.Errorf("%q: got %s, %v; want %s", test.input, got, err, test.want)
		}
		if err := provision(new(TCP), string(got)); test.err == "" && err != nil {
			t.Errorf("%q parses as %s, but does not load: %v", test.input, got, err)
		}
	}
}

// A Redis server is up if it answers PING, and down with its own error if it requires a
// password.
func TestTCP_RedisIsUpIfItAnswersPing(t *testing.T) {
	t.Parallel()
	program, err := exec.LookPath("redis-server")
	if err != nil {
		t.Skip("redis-server is not installed:", err)
	}
	for name, test := range map[string]struct {
		args []string
		want string // the beginning of the reason
	}{
		"open":     {nil, ""},
		"password": {[]string{"--requirepass", "secret"}, `got "-NOAUTH Authentication required.\r\n", want '\+PONG': `},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, err := os.MkdirTemp("", "redis") // short, because the path of a socket has a limit
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(dir) })
			socket := filepath.Join(dir, "s")
			var output bytes.Buffer
			server := exec.Command(program, append([]string{"--port", "0", "--unixsocket", socket, "--save", "", "--appendonly", "no", "--dir", dir}, test.args...)...)
			server.Stdout, server.Stderr = &output, &output
			if err := server.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan struct{})
			go func() {
				server.Wait()
				close(ended)
			}()
			t.Cleanup(func() {
				server.Process.Kill()
				<-ended
			})
			for limit := time.Now().Add(long); ; time.Sleep(10 * time.Millisecond) {
				if conn, err := net.Dial("unix", socket); err == nil {
					conn.Close()
					break
				} else if time.Now().After(limit) {
					server.Process.Kill()
					<-ended
					t.Fatalf("redis-server does not listen: %v\n%s", err, output.Bytes())
				}
			}

			p := loadKind(t, new(TCP), `{"send":"PING\\r\\n","expect":"\\+PONG"}`)
			up := way{network: "unix", addr: socket}.upstream(t)
			limit := long
			if test.want != "" {
				limit = 5 * short // it answers, and then waits for the next command
			}
			if got := text(run(t, p, up, limit)); test.want == "" && got != "" || !strings.HasPrefix(got, test.want) {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

// The timeout holds even if the connection has timeouts of its own, and bytes that come
// one by one do not cost a search each.
func TestTCP_TimeoutHoldsWhileBytesTrickle(t *testing.T) {
	t.Parallel()
	addr := talk(t, func(conn net.Conn) {
		if _, err := conn.Write(bytes.Repeat([]byte("x"), 60_000)); err != nil {
			return
		}
		for {
			if _, err := conn.Write([]byte("x")); err != nil {
				return
			}
			runtime.Gosched()
		}
	})
	up := Upstream{Dial: func(ctx context.Context) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		return &patientConn{conn}, err
	}}
	p := loadKind(t, new(TCP), `{"expect":"never"}`)
	if err := run(t, p, up, long); err == nil || !strings.Contains(err.Error(), "in its first 64 KiB") {
		t.Errorf("got %v, want that nothing matches", err)
	}

	hung := talk(t, func(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) })
	addr = hung
	if err := run(t, p, up, short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want %v", err, context.DeadlineExceeded)
	}
}
