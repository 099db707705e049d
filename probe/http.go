// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/dustin/go-humanize"
	"golang.org/x/net/http/httpguts"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-alive/caddy-alive/internal/grammar"
	"github.com/caddy-alive/caddy-alive/internal/limits"
	"github.com/caddy-alive/caddy-alive/internal/redact"
)

func init() { caddy.RegisterModule(HTTP{}) }

const (
	defaultMaxSize = 64 << 10
	maxMaxSize     = 64 << 20
	sizeRange      = "size from 1 byte to 64MiB, like 64KiB" // as messages call it, after "a" or "one"
	maxRequestBody = 64 << 10
	maxRedirects   = 10
)

// HTTP checks the answer of an upstream to a request. The request is sent as proxied
// requests are: with the same scheme, TLS trust and HTTP version. The answer has to
// meet all expectations.
//
// Global placeholders such as `{env.*}` are resolved when the config is loaded.
// Placeholders of a request are errors, because there is no request. Labels, reasons
// and errors show the options as they are written, and never the values of
// placeholders.
type HTTP struct {
	// The path to request, with a query if needed. Required.
	URI string `json:"uri,omitempty"`

	// The request method. Methods of HTTP itself, such as `GET`, can be written in lower
	// case, too. Default: `GET`.
	Method string `json:"method,omitempty"`

	// The header fields to send. `Host` replaces the host, which by default is the address
	// that is probed.
	Header http.Header `json:"header,omitempty"`

	// The body of the request, 65536 bytes (64 KiB) at most. Default: none.
	RequestBody string `json:"request_body,omitempty"`

	// `http` or `https`, for instance if the health port of a TLS upstream has no TLS.
	// Default: the scheme of the proxy.
	Scheme string `json:"scheme,omitempty"`

	// Whether to follow redirects, 10 at most, instead of judging them. All
	// requests go to the upstream, whatever host a redirect names, and the scheme
	// must not change. Default: false.
	FollowRedirects bool `json:"follow_redirects,omitempty"`

	// The status codes that mean alive: codes (`204`), classes (`2xx`) and ranges
	// (`200-399`). Default: `2xx`.
	Status []string `json:"status,omitempty"`

	// The status codes that mean alive, but no new requests, in the same form. Such an
	// answer takes effect at once, and nothing else is expected of it. A code that is also
	// in `status` has this meaning. Default: none.
	DrainStatus []string `json:"drain_status,omitempty"`

	// Regular expressions (RE2) by the names of header fields of the answer. Each
	// has to match somewhere in a value of its field.
	ExpectHeader map[string]string `json:"expect_header,omitempty"`

	// A regular expression (RE2) that has to match somewhere in the body, which has
	// to arrive in full, or up to `max_size`. By default, and unless `expression`
	// needs the body, the status decides and the body is not waited for.
	ExpectBody string `json:"expect_body,omitempty"`

	// A CEL expression that has to be true, such as
	// `headers['X-Role'][0] == 'primary' && json.db == 'ok'`. Its variables are `status`
	// (a number), `headers` (lists of values by canonical name), `body` (a string),
	// `json` (the body parsed as JSON, 250000 values at most) and `duration` (of the
	// probe). An evaluation that costs more than 10000000 fails: each call costs 5, also
	// in loops, and each byte of a text that a call makes costs 1.
	Expression string `json:"expression,omitempty"`

	// How many bytes of the body to read at most; `expect_body` and `expression` see no
	// more. A costly regular expression takes long on a large body and cannot be
	// interrupted: a probe that ends after its timeout counts as timed out. Default: 65536
	// (64 KiB), at most 67108864 (64 MiB).
	MaxSize int64 `json:"max_size,omitempty"`

	// Deprecated: it has no effect. Every probe has a connection of its own, unless
	// `keep_connection` of the check says otherwise.
	FreshConnection bool `json:"fresh_connection,omitempty"`

	TLSOptions

	request    *http.Request // the request of all probes, without the upstream
	status     []limits.StatusRange
	draining   []limits.StatusRange
	header     []expectedHeader
	body       *pattern
	expression *expression
	secrets    redact.Values // what must not be in a reason
}

// CaddyModule returns the Caddy module information.
func (HTTP) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "alive.probes.http",
		New: func() caddy.Module { return new(HTTP) },
	}
}

// Provision resolves placeholders and compiles what Probe needs.
func (h *HTTP) Provision(_ caddy.Context) error {
	if err := h.provisionRequest(); err != nil {
		return err
	}
	if err := h.provisionAnswer(); err != nil {
		return err
	}
	if err := checkScheme(h.Scheme); err != nil {
		return err
	}
	h.secrets.Learn(h.TLSServerName)
	return h.TLSOptions.provision()
}

// resolve replaces global placeholders in the value of an option, and records their
// values as secrets.
func (h *HTTP) resolve(option, value string) (string, error) {
	h.secrets.Learn(value)
	return resolve(option, value)
}

// provisionRequest prepares the request that all probes send.
func (h *HTTP) provisionRequest() error {
	uri, err := h.resolve("uri", h.URI)
	if err != nil {
		return err
	}
	target, err := parseURI(h.URI, uri)
	if err != nil {
		return err
	}
	if h.Method == "" {
		h.Method = http.MethodGet
	}
	method, err := h.resolve("method", h.Method)
	if err != nil {
		return err
	}
	method = standardMethod(method)
	if err := checkMethod(h.Method, method); err != nil {
		return err
	}
	h.Method = method
	header := make(http.Header)
	for name, values := range h.Header {
		for _, value := range values {
			if _, given := header["Host"]; given && strings.EqualFold(name, "Host") {
				return errHostTwice
			}
			resolved, err := h.resolve("header "+name, value)
			if err != nil {
				return err
			}
			if err := checkHeader(name, value, resolved); err != nil {
				return err
			}
			header.Add(name, resolved)
		}
	}
	if _, given := header["User-Agent"]; !given {
		header.Set("User-Agent", "caddy-alive")
	}
	h.request = &http.Request{
		Method: h.Method, URL: target, Header: header, Host: header.Get("Host"),
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}
	header.Del("Host")

	h.secrets.Learn(h.RequestBody)
	if h.RequestBody, err = resolveText("request_body", h.RequestBody); err != nil {
		return err
	}
	if err := checkRequestBody(h.RequestBody); err != nil {
		return err
	}
	if h.RequestBody != "" {
		h.request.ContentLength = int64(len(h.RequestBody))
		h.request.GetBody = func() (io.ReadCloser, error) {
			return io.NopCloser(strings.NewReader(h.RequestBody)), nil
		}
	}
	return nil
}

// Overrides returns how probes differ from proxied requests.
func (h *HTTP) Overrides() Overrides {
	o := h.TLSOptions.overrides()
	o.Scheme, o.FreshConnection = h.Scheme, h.FreshConnection
	return o
}

// ValidateUpstream rejects proxies that do not speak HTTP.
func (h *HTTP) ValidateUpstream(up Upstream) error {
	if up.Transport == nil {
		return errHTTP("an http", up)
	}
	return nil
}

// Probe sends the request and judges the answer.
func (h *HTTP) Probe(ctx context.Context, up Upstream) error {
	return h.secrets.Error(h.probe(ctx, up))
}

// send sends the request and returns the answer.
func (h *HTTP) send(ctx context.Context, up Upstream) (*http.Response, error) {
	req := h.request.WithContext(ctx)
	target := *h.request.URL
	target.Scheme, target.Host = up.Scheme, up.Host
	req.URL = &target
	if req.Host == "" {
		req.Host = up.Host
	}
	if req.GetBody != nil {
		req.Body, _ = req.GetBody()
	}
	if !h.FollowRedirects {
		return up.Transport.RoundTrip(req)
	}
	client := http.Client{Transport: up.Transport, CheckRedirect: checkRedirect}
	resp, err := client.Do(req)
	if failed, ok := errors.AsType[*url.Error](err); ok {
		err = failed.Err // the reason has no use for the method and the URL
	}
	return resp, err
}

// checkRedirect decides whether to follow a redirect.
func checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return fmt.Errorf("more than %d redirects", maxRedirects)
	}
	if req.URL.Scheme != via[0].URL.Scheme {
		return fmt.Errorf("redirect to another scheme: %s", req.URL.Redacted())
	}
	return nil
}

// String returns the check as it is shown.
func (h *HTTP) String() string { return "http " + h.URI + headerLabel(h.Header) + h.TLSOptions.label() }

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

// UnmarshalCaddyfile sets up the module from Caddyfile tokens. Syntax:
//
//	http <uri> {
//		method        <method>
//		header        <name> <value>
//		request_body  <text>
//		scheme        http|https
//		follow_redirects
//		status        <codes...>
//		drain_status  <codes...>
//		expect_header <name> <regexp>
//		expect_body   <regexp>
//		expression    <cel>
//		max_size      <size>
//		tls_server_name <name>
//		tls_insecure_skip_verify
//	}
func (h *HTTP) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // consume the kind
	if !d.NextArg() {
		return d.Err("an http check needs the URI to ask for, like http /healthz")
	}
	h.URI = d.Val()
	// the value of a placeholder is known only when the config is loaded
	if literal, _, _ := strings.Cut(h.URI, "{"); literal != "" || h.URI == "" {
		if _, err := parseURI(h.URI, literal); err != nil {
			return d.WrapErr(err)
		}
	}
	if d.NextArg() {
		return d.Errf("an http check takes one URI; got '%s' too", d.Val())
	}
	err := grammar.ReadBlock(d, func(option string) error {
		known, err := unmarshalRequestOption(h, d, option)
		if !known && err == nil {
			known, err = unmarshalAnswerOption(h, d, option)
		}
		if !known && err == nil {
			known, err = h.TLSOptions.unmarshalOption(d)
		}
		if !known && err == nil {
			return UnrecognizedOption(d, "an http check", "method", "header", "request_body", "scheme", "follow_redirects", "status", "drain_status",
				"expect_header", "expect_body", "expression", "max_size", "tls_server_name", "tls_insecure_skip_verify")
		}
		return err
	}, func(option string) bool { return option == "header" || option == "expect_header" })
	if err != nil {
		return err
	}
	return grammar.At(d, h.checkBody())
}

// Interface guards
var (
	_ Prober                = (*HTTP)(nil)
	_ UpstreamValidator     = (*HTTP)(nil)
	_ Overrider             = (*HTTP)(nil)
	_ caddy.Provisioner     = (*HTTP)(nil)
	_ caddyfile.Unmarshaler = (*HTTP)(nil)
)
