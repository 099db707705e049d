// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-alive/caddy-alive/internal/grammar"
	"github.com/caddy-alive/caddy-alive/internal/limits"
	"github.com/caddy-alive/caddy-alive/internal/placeholder"
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
// requests are: with the same scheme, TLS trust and HTTP version, or over FastCGI. The answer has to
// meet all expectations.
//
// Global placeholders such as `{env.*}` are resolved when the config is loaded. In `uri`,
// `header` and `request_body`, placeholders of the upstream that is probed can be used,
// too: `{http.reverse_proxy.upstream.hostport}`, `{http.reverse_proxy.upstream.host}`,
// `{http.reverse_proxy.upstream.port}` and
// `{http.reverse_proxy.active.target_upstream}`. Other placeholders of a request are
// errors, because there is no request. Labels, reasons
// and errors show the options as they are written, and never the values of
// placeholders.
type HTTP struct {
	// The path to request, with a query if needed. Required.
	URI string `json:"uri,omitempty"`

	// The request method. Methods of HTTP itself, such as `GET`, can be written in lower
	// case, too. Default: `GET`.
	Method string `json:"method,omitempty"`

	// The header fields to send. `Host` replaces the host. By default, that is the Host
	// header of proxied requests if the handler sets it to a constant (`header_up Host
	// app.internal`), and otherwise the address that is probed.
	Header http.Header `json:"header,omitempty"`

	// The body of the request, 65536 bytes (64 KiB) at most. Default: none.
	RequestBody string `json:"request_body,omitempty"`

	// `http` or `https`, for instance if the health port of a TLS upstream has no TLS.
	// Default: the scheme of the proxy.
	Scheme string `json:"scheme,omitempty"`

	// The version of HTTP that probes speak, whatever proxied requests do: `1.1`, with TLS
	// or without; `2`, with TLS; or `h2c`, HTTP/2 without TLS. Not over FastCGI. Default:
	// as the proxy does.
	Version string `json:"version,omitempty"`

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

	request    *request
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
	if err := h.provisionMethod(); err != nil {
		return err
	}
	var err error
	if h.request, err = newRequest(h); err != nil {
		return err
	}
	if err := h.provisionAnswer(); err != nil {
		return err
	}
	if err := checkScheme(h.Scheme); err != nil {
		return err
	}
	if err := checkVersion(h.Version, h.Scheme); err != nil {
		return err
	}
	h.secrets.Learn(h.TLSServerName)
	return h.TLSOptions.provision()
}

// provisionMethod resolves the method.
func (h *HTTP) provisionMethod() error {
	if h.Method == "" {
		h.Method = http.MethodGet
	}
	h.secrets.Learn(h.Method)
	method, err := resolve("method", h.Method)
	if err != nil {
		return err
	}
	method = standardMethod(method)
	if err := checkMethod(h.Method, method); err != nil {
		return err
	}
	h.Method = method
	return nil
}

// Overrides returns how probes differ from proxied requests.
func (h *HTTP) Overrides() Overrides {
	o := h.TLSOptions.overrides()
	o.Scheme, o.FreshConnection = h.Scheme, h.FreshConnection
	o.HTTP1, o.HTTP2 = h.Version == version1, h.Version == version2 || h.Version == versionH2C
	return o
}

// UsesDefaultHost reports whether the Host of requests is not configured.
func (h *HTTP) UsesDefaultHost() bool {
	for name, values := range h.Header {
		if strings.EqualFold(name, "Host") && len(values) > 0 {
			return false
		}
	}
	return true
}

// ValidateUpstream rejects upstreams that no request can be sent to as the check says.
func (h *HTTP) ValidateUpstream(up Upstream) error {
	if up.Transport == nil && h.Version != "" {
		return fmt.Errorf("version has no meaning over FastCGI; leave it out, or set scheme and port of an HTTP port; it is '%s'", h.Version)
	}
	if up.Transport == nil {
		return errHTTP("an http", up)
	}
	if err := checkVersion(h.Version, up.Scheme); err != nil {
		return err
	}
	_, err := h.request.of(up)
	return err
}

// Probe sends the request and judges the answer.
func (h *HTTP) Probe(ctx context.Context, up Upstream) error {
	return h.secrets.Error(h.probe(ctx, up))
}

// send sends the request and returns the answer, of the version that is configured.
func (h *HTTP) send(ctx context.Context, up Upstream) (*http.Response, error) {
	resp, err := h.exchange(ctx, up)
	// net/http falls back to HTTP/1.1 if the server does not negotiate
	if err == nil && (h.Version == version2 || h.Version == versionH2C) && resp.ProtoMajor != 2 {
		_ = resp.Body.Close()
		return nil, fmt.Errorf("the upstream speaks %s, not HTTP/2", resp.Proto)
	}
	return resp, err
}

// exchange sends the request and returns the answer.
func (h *HTTP) exchange(ctx context.Context, up Upstream) (*http.Response, error) {
	template, err := h.request.of(up)
	if err != nil {
		return nil, err
	}
	req := template.WithContext(ctx)
	target := *template.URL
	target.Scheme, target.Host = up.Scheme, up.Host
	req.URL = &target
	req.Host = cmp.Or(req.Host, up.DefaultHost, up.Host)
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
func (h *HTTP) String() string {
	label := "http " + h.URI + headerLabel(h.Header)
	if h.Version != "" {
		label += " version " + h.Version
	}
	return label + h.TLSOptions.label()
}

// UnmarshalCaddyfile sets up the module from Caddyfile tokens. Syntax:
//
//	http <uri> {
//		method        <method>
//		header        <name> <value>
//		request_body  <text>
//		scheme        http|https
//		version       1.1|2|h2c
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
	if err := placeholder.Check("uri", h.URI); err != nil {
		return d.WrapErr(err)
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
			return UnrecognizedOption(d, "an http check", "method", "header", "request_body", "scheme", "version", "follow_redirects", "status", "drain_status",
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
	_ DefaultHostUser       = (*HTTP)(nil)
	_ caddy.Provisioner     = (*HTTP)(nil)
	_ caddyfile.Unmarshaler = (*HTTP)(nil)
)
