// SPDX-License-Identifier: Apache-2.0

package observer

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"regexp"
	"strings"
	"syscall"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/witness"
)

// classify returns how a round trip failed, and whether that accuses the upstream. What is
// not known to be the upstream's doing does not.
func classify(ctx context.Context, err error, content *body, c connection) (f witness.Failure, accuses bool) {
	if ctx.Err() != nil || errors.Is(err, context.Canceled) || content != nil && content.failed.Load() {
		return f, false // the client has left, or its body is broken
	}
	if refused, ok := errors.AsType[caddyhttp.HandlerError](err); ok && refused.StatusCode < 500 {
		return f, false
	}
	if isShortage(err) {
		return f, false
	}
	f.Reason = health.OneLine(err.Error())
	switch {
	case isReset(err):
		f.Cause = witness.Outcome
	case isConnect(err):
		f.Cause = witness.Connect
	case isTimeout(err):
		f.Cause = witness.Stall
	case isBroken(err) && c == none: // while TLS was negotiated
		f.Cause = witness.Connect
	case isBroken(err):
		// malformed bytes are an answer, and so is the reset of a stream
		f.Cause, f.Unsure = witness.Outcome, c == reused && !hasText(err, "malformed") && !isStreamReset(err)
	default:
		return f, false
	}
	return f, true
}

// isShortage reports whether this process lacked a resource. Caddy's own type of error for a
// dial has only the text of its cause.
func isShortage(err error) bool {
	if dial, ok := errors.AsType[reverseproxy.DialError](err); ok && health.ShortageIn(dial.Error()) != nil {
		return true
	}
	return health.Shortage(err) != ""
}

// isReset reports whether a connection was accepted and reset, so soon that dialing has
// failed.
func isReset(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "dial" && errors.Is(op, syscall.ECONNRESET)
}

// isConnect reports whether no connection could be made, or no TLS session.
func isConnect(err error) bool {
	if _, ok := errors.AsType[reverseproxy.DialError](err); ok {
		return true
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && (op.Op == "dial" || op.Op == "proxyconnect" || op.Op == "remote error") {
		return true // a remote error is an alert of TLS
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return true
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return true
	}
	return hasText(err, "tls: ", "x509: ", "TLS handshake timeout", "server gave HTTP response to HTTPS client",
		"handshake did not complete in time", "CRYPTO_ERROR")
}

// isTimeout reports whether the answer did not come in time.
func isTimeout(err error) bool {
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		return !hasText(err, "no recent network activity") // QUIC: the connection is lost
	}
	return false
}

// isBroken reports whether the connection ended without an answer, or what came is none.
func isBroken(err error) bool {
	// net.ErrClosed: the transport has noticed the end of the connection, and closed it, while a
	// body was being sent
	for _, end := range []error{io.EOF, io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.EPIPE, syscall.ECONNABORTED, net.ErrClosed} {
		if errors.Is(err, end) {
			return true
		}
	}
	return hasText(err, "server closed idle connection", "connection broken", "malformed", "connection reset", "broken pipe", "EOF",
		"server sent GOAWAY", "client connection lost", "client connection force closed", "stream error: ", "no recent network activity", "Application error", "H3_")
}

// isStreamReset reports whether an upstream has ended one request of an HTTP/2 connection that
// goes on: the connection was no idle one that it closed. If it refuses a stream, it has not
// looked at the request.
func isStreamReset(err error) bool {
	return hasText(err, "stream error: ") && !hasText(err, "REFUSED_STREAM")
}

// quoted are the parts of a text between quotation marks.
var quoted = regexp.MustCompile(`"(?:[^"\\]|\\.)*"`)

// hasText reports whether the text of an error has one of some parts. Libraries do not
// export the errors that these are of. What is quoted does not count: a client or an upstream
// may have written it, such as the name of a field that is refused.
func hasText(err error, parts ...string) bool {
	text := quoted.ReplaceAllLiteralString(err.Error(), "")
	for _, part := range parts {
		if strings.Contains(text, part) {
			return true
		}
	}
	return false
}
