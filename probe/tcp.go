// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-alive/caddy-alive/internal/redact"
)

func init() { caddy.RegisterModule(TCP{}) }

const (
	// maxExpected is how many bytes a TCP check reads in search of what it expects.
	maxExpected = 64 << 10
	// After muchExpected bytes it pauses before each read, because the bytes may come one
	// by one and each search begins at the first byte.
	muchExpected = 4 << 10
	collecting   = 10 * time.Millisecond
)

// TCP checks that an upstream accepts connections and, if so configured, that it sends
// what is expected. It is the default check. It does not use TLS, even if the proxy
// does.
type TCP struct {
	// What to send once connected. Escapes as in Go strings are `\r`, `\n`, `\t`,
	// `\\` and `\x00` to `\xff`. Default: nothing.
	Send string `json:"send,omitempty"`

	// A regular expression (RE2) that has to match somewhere in the first 64 KiB
	// that come back before the timeout. Default: nothing is waited for.
	Expect string `json:"expect,omitempty"`

	send    []byte
	expect  *pattern
	secrets redact.Values // what must not be in a reason
}

// CaddyModule returns the Caddy module information.
func (TCP) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "alive.probes.tcp",
		New: func() caddy.Module { return new(TCP) },
	}
}

// UnmarshalCaddyfile sets up the module from Caddyfile tokens. Syntax:
//
//	tcp {
//		send   <text>
//		expect <regexp>
//	}
func (t *TCP) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // consume the kind
	if d.NextArg() {
		return d.Errf("a tcp check takes no argument; got '%s'", d.Val())
	}
	return ReadBlock(d, func(option string) error {
		switch option {
		case "send":
			if !d.AllArgs(&t.Send) || t.Send == "" {
				return d.Err(`send takes one text, like "PING\r\n"; put it into quotes if it has spaces`)
			}
			_, err := unescape(t.Send)
			return wrap(d, err)
		case "expect":
			if !d.AllArgs(&t.Expect) {
				return d.Err("expect takes one regular expression; put it into quotes if it has spaces")
			}
			_, err := compile(option, t.Expect)
			return wrap(d, err)
		}
		return UnrecognizedOption(d, "a tcp check", "send", "expect")
	}, nil)
}

// Provision resolves placeholders and compiles what Probe needs.
func (t *TCP) Provision(_ caddy.Context) error {
	t.secrets.Learn(t.Send)
	t.secrets.Learn(t.Expect)
	text, err := unescape(t.Send)
	if err != nil {
		return err
	}
	if text, err = resolveText("send", text); err != nil {
		return err
	}
	t.send = []byte(text)
	if t.Expect != "" {
		t.expect, err = resolvePattern("expect", t.Expect)
	}
	return err
}

// unescape replaces the escapes in a text to send.
func unescape(text string) (string, error) {
	var out strings.Builder
	for rest := text; rest != ""; {
		before, after, found := strings.Cut(rest, `\`)
		out.WriteString(before)
		if !found {
			break
		}
		length := 1
		if strings.HasPrefix(after, "x") {
			length = 3
		}
		if len(after) < length {
			return "", errEscape(after)
		}
		switch escape := after[:length]; escape {
		case "r":
			out.WriteByte('\r')
		case "n":
			out.WriteByte('\n')
		case "t":
			out.WriteByte('\t')
		case `\`:
			out.WriteByte('\\')
		default:
			code, err := strconv.ParseUint(strings.TrimPrefix(escape, "x"), 16, 8)
			if err != nil || length == 1 {
				return "", errEscape(escape)
			}
			out.WriteByte(byte(code))
		}
		rest = after[length:]
	}
	return out.String(), nil
}

func errEscape(escape string) error {
	return fmt.Errorf(`send knows the escapes \r, \n, \t, \\ and \x00 to \xff; got '\%s'`, escape)
}

// ValidateUpstream rejects proxies that do not connect by TCP.
func (t *TCP) ValidateUpstream(up Upstream) error {
	if up.Dial == nil {
		return errConnect("tcp", up)
	}
	return nil
}

// NoRequests says that probes send no HTTP requests.
func (*TCP) NoRequests() {}

// Probe connects, sends, waits for what is expected, and hangs up.
func (t *TCP) Probe(ctx context.Context, up Upstream) error {
	return t.secrets.Error(t.probe(ctx, up))
}

func (t *TCP) probe(ctx context.Context, up Upstream) error {
	conn, err := up.Dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	if len(t.send) == 0 && t.expect == nil {
		return nil
	}
	// timeouts of the transport could replace a deadline
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	if len(t.send) > 0 {
		if _, err := conn.Write(t.send); err != nil {
			return fmt.Errorf("sending: %w", cause(ctx, err))
		}
	}
	if t.expect == nil {
		return nil
	}
	return t.await(ctx, conn)
}

// cause returns the error of the context if it is done, and otherwise the given error.
func cause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// await reads until the expected text has come.
func (t *TCP) await(ctx context.Context, conn net.Conn) error {
	got := make([]byte, 0, 4<<10)
	for len(got) < maxExpected {
		if len(got) == cap(got) {
			got = slices.Grow(got, min(len(got), maxExpected-len(got)))
		}
		n, err := conn.Read(got[len(got):min(cap(got), maxExpected)])
		got = got[:len(got)+n]
		switch {
		case n > 0 && t.expect.Match(got):
			return nil
		case errors.Is(err, io.EOF):
			return fmt.Errorf("the connection was closed after %s, want '%s'", t.shown(got), t.expect)
		case err != nil:
			return fmt.Errorf("got %s, want '%s': %w", t.shown(got), t.expect, cause(ctx, err))
		}
		if len(got) > muchExpected {
			pause(ctx, collecting)
		}
	}
	return fmt.Errorf("got %s, which does not match '%s' in its first %s", t.shown(got), t.expect, humanize.IBytes(maxExpected))
}

// pause waits for a time, or until the context is done.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// shown returns the beginning of what was received, for use in a reason. It returns
// only the size if the expected text may be secret.
func (t *TCP) shown(got []byte) string {
	switch {
	case len(got) == 0:
		return "nothing"
	case t.expect.secret:
		return inBytes(len(got))
	default:
		return quote(&t.secrets, got)
	}
}

// String returns the check as it is shown.
func (t *TCP) String() string { return "tcp" }

// Interface guards
var (
	_ Prober                = (*TCP)(nil)
	_ UpstreamValidator     = (*TCP)(nil)
	_ caddy.Provisioner     = (*TCP)(nil)
	_ caddyfile.Unmarshaler = (*TCP)(nil)
)
