// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/dustin/go-humanize"
	"golang.org/x/net/http/httpguts"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-alive/caddy-alive/internal/grammar"
	"github.com/caddy-alive/caddy-alive/internal/placeholder"
)

// request makes the requests of an http check. They are equal for all upstreams, unless
// an option has a placeholder of the upstream.
type request struct {
	method string
	uri    placeholder.Text
	header []headerField
	body   placeholder.Text
	equal  *http.Request // nil if they are not
}

// headerField is a header field of a request.
type headerField struct {
	name  string
	value placeholder.Text
}

// newRequest prepares the requests of a check, whose method is resolved.
func newRequest(h *HTTP) (*request, error) {
	r := &request{method: h.Method}
	h.secrets.Learn(h.URI)
	var err error
	if r.uri, err = placeholder.Parse("uri", h.URI); err != nil {
		return nil, err
	}
	hosts := 0
	for name, values := range h.Header {
		if strings.EqualFold(name, "Host") {
			if hosts += len(values); hosts > 1 {
				return nil, errHostTwice
			}
		}
		for _, value := range values {
			h.secrets.Learn(value)
			text, err := placeholder.Parse("header "+name, value)
			if err != nil {
				return nil, err
			}
			r.header = append(r.header, headerField{name, text})
		}
	}
	h.secrets.Learn(h.RequestBody)
	if r.body, err = placeholder.ParseKnown("request_body", h.RequestBody); err != nil {
		return nil, err
	}
	if r.isEqual() {
		r.equal, err = r.build(nil)
	}
	return r, err
}

// isEqual reports whether the requests are equal for all upstreams.
func (r *request) isEqual() bool {
	constant := func(text placeholder.Text) bool { _, is := text.Constant(); return is }
	return constant(r.uri) && constant(r.body) &&
		!slices.ContainsFunc(r.header, func(field headerField) bool { return !constant(field.value) })
}

// of returns the request to an upstream, to be copied. It has neither scheme nor host in
// its URL, and a Host if the check has one.
func (r *request) of(up Upstream) (*http.Request, error) {
	if r.equal != nil {
		return r.equal, nil
	}
	return r.build(up.Placeholders)
}

// build makes a request from placeholders of the upstream.
func (r *request) build(value caddy.ReplacerFunc) (*http.Request, error) {
	uri, err := r.uri.For(value)
	if err != nil {
		return nil, err
	}
	target, err := parseURI(r.uri.String(), uri)
	if err != nil {
		return nil, err
	}
	header := make(http.Header)
	for _, field := range r.header {
		text, err := field.value.For(value)
		if err != nil {
			return nil, err
		}
		if err := checkHeader(field.name, field.value.String(), text); err != nil {
			return nil, err
		}
		header.Add(field.name, text)
	}
	if _, given := header["User-Agent"]; !given {
		header.Set("User-Agent", "caddy-alive")
	}
	req := &http.Request{
		Method: r.method, URL: target, Header: header, Host: header.Get("Host"),
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}
	header.Del("Host")
	body, err := r.body.For(value)
	if err != nil {
		return nil, err
	}
	if err := checkRequestBody(body); err != nil {
		return nil, err
	}
	if body != "" {
		req.ContentLength = int64(len(body))
		req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(body)), nil }
	}
	return req, nil
}

// The versions of HTTP that a probe can speak whatever the proxy does.
const (
	version1   = "1.1"
	version2   = "2"
	versionH2C = "h2c"
)

var (
	errVersion2   = errors.New("version 2 is HTTP/2 with TLS, and probes do not use TLS here; write version h2c for HTTP/2 without TLS, or scheme https")
	errVersionH2C = errors.New("version h2c is HTTP/2 without TLS, and probes use TLS here; write version 2, or scheme http")
)

// checkVersion reports why probes cannot have a version of HTTP. The scheme is empty if
// the check does not say which it is.
func checkVersion(version, scheme string) error {
	switch version {
	case "", version1:
		return nil
	case version2:
		if scheme == "http" {
			return errVersion2
		}
	case versionH2C:
		if scheme == "https" {
			return errVersionH2C
		}
	default:
		return fmt.Errorf("version must be 1.1, 2 or h2c; got '%s'", version)
	}
	return nil
}

// parseURI parses a URI whose placeholders are replaced. Errors show it as written.
func parseURI(written, uri string) (*url.URL, error) {
	const must = "uri must be a path that begins with one '/', optionally with a query"
	u, err := url.ParseRequestURI(uri)
	if strings.HasPrefix(uri, "http://") || strings.HasPrefix(uri, "https://") {
		path := "/healthz"
		if err == nil && uri == written { // it contains no placeholder
			path = u.RequestURI()
		}
		return nil, fmt.Errorf("%s; give only the path, like %s: the request always goes to the upstream; got '%s'", must, path, written)
	}
	if !strings.HasPrefix(uri, "/") || strings.HasPrefix(uri, "//") || strings.ContainsAny(uri, " #") {
		return nil, fmt.Errorf("%s; got '%s'", must, written)
	}
	switch {
	case err == nil:
		return u, nil
	case uri != written:
		return nil, fmt.Errorf("%s; got '%s'", must, written)
	}
	return nil, fmt.Errorf("%s: %v", must, err)
}

func checkRequestBody(body string) error {
	if len(body) > maxRequestBody {
		return fmt.Errorf("request_body must not be longer than %s", humanize.IBytes(maxRequestBody))
	}
	return nil
}

// standardMethod returns a method of HTTP itself in upper case. Other methods stay as
// they are, because names of methods are case-sensitive.
func standardMethod(method string) string {
	switch upper := strings.ToUpper(method); upper {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch,
		http.MethodDelete, http.MethodConnect, http.MethodOptions, http.MethodTrace:
		return upper
	}
	return method
}

func checkMethod(written, method string) error {
	if !httpguts.ValidHeaderFieldName(method) { // both are tokens, RFC 9110, section 9.1
		return fmt.Errorf("method must be an HTTP method, like GET or HEAD; got '%s'", written)
	}
	return nil
}

func checkFieldName(name string) error {
	if !httpguts.ValidHeaderFieldName(name) {
		return fmt.Errorf("a field name has letters, digits and hyphens; got '%s'", name)
	}
	return nil
}

var errHostTwice = grammar.GivenTwice("header Host")

func checkHeader(name, written, value string) error {
	if err := checkFieldName(name); err != nil {
		return fmt.Errorf("header: %v", err)
	}
	if !httpguts.ValidHeaderFieldValue(value) {
		return fmt.Errorf("header %s must not have line breaks or other control characters in its value", name)
	}
	switch http.CanonicalHeaderKey(name) {
	case "Content-Length", "Transfer-Encoding", "Trailer":
		return fmt.Errorf("header %s cannot be set: it follows from request_body", name)
	}
	if strings.EqualFold(name, "Host") && !httpguts.ValidHostHeader(value) {
		return fmt.Errorf("header Host must be a host, optionally with a port; got '%s'", written)
	}
	return nil
}
