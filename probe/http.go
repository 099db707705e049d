// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"golang.org/x/net/http/httpguts"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

const (
	defaultMaxSize = 64 << 10
	maxMaxSize     = 64 << 20
	maxRequestBody = 64 << 10
	maxRedirects   = 10
)

// HTTP checks that an upstream answers a request as it should. The request
// travels as proxied ones do: same scheme, TLS trust and HTTP version. All that
// is expected of the answer has to hold.
//
// Global placeholders such as `{env.*}` are resolved when the config is
// loaded; placeholders of a request are errors, for there is none.
type HTTP struct {
	// The path, with a query if need be, to ask for. Required.
	URI string `json:"uri,omitempty"`

	// The request method. Default: `GET`.
	Method string `json:"method,omitempty"`

	// What to send in the header, by field. `Host` replaces the host, which by
	// default is the address that is probed.
	Header http.Header `json:"header,omitempty"`

	// The body of the request, 65536 bytes (64 KiB) at most. Default: none.
	RequestBody string `json:"request_body,omitempty"`

	// `http` or `https`, for instance where the health port of a TLS upstream is a
	// plain one. Default: as the proxy has it.
	Scheme string `json:"scheme,omitempty"`

	// Whether to follow redirects, 10 at most, instead of judging them. All
	// requests go to the upstream, whatever host a redirect names, and the scheme
	// must not change. Default: false.
	FollowRedirects bool `json:"follow_redirects,omitempty"`

	// The answers that mean alive: codes (`204`), classes (`2xx`) and ranges
	// (`200-399`). Default: `2xx`.
	Status []string `json:"status,omitempty"`

	// The answers that mean alive, but no new requests, in the same form. Such an
	// answer takes effect at once, and nothing else is expected of it; one that
	// `status` has, too, means this. Default: none.
	DrainStatus []string `json:"drain_status,omitempty"`

	// Regular expressions (RE2) by the names of header fields of the answer. Each
	// has to match somewhere in a value of its field.
	ExpectHeader map[string]string `json:"expect_header,omitempty"`

	// A regular expression (RE2) that has to match somewhere in the body. By
	// default, the body is read but not looked at.
	ExpectBody string `json:"expect_body,omitempty"`

	// A CEL expression that has to be true, such as
	// `headers['X-Role'][0] == 'primary' && json.db == 'ok'`. It knows `status` (a
	// number), `headers` (lists of values by canonical name), `body` (a string),
	// `json` (what the body is as JSON) and `duration` (of the probe).
	Expression string `json:"expression,omitempty"`

	// How many bytes of the body to read at most; `expect_body` and `expression` see
	// no more. Default: 65536 (64 KiB), at most 67108864 (64 MiB).
	MaxSize int64 `json:"max_size,omitempty"`

	// Deprecated: it has no effect. Every probe has a connection of its own, unless
	// `keep_connection` of the check says otherwise.
	FreshConnection bool `json:"fresh_connection,omitempty"`

	TLSOptions

	request    *http.Request // what every probe sends, but for the upstream
	status     []statusRange
	draining   []statusRange
	header     []expectedHeader
	body       *regexp.Regexp
	expression *expression
}

// expectedHeader is a header field that an answer must have.
type expectedHeader struct {
	name  string
	value *regexp.Regexp
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
	return h.TLSOptions.provision()
}

// provisionRequest makes what every probe sends.
func (h *HTTP) provisionRequest() error {
	uri, err := resolve("uri", h.URI)
	if err != nil {
		return err
	}
	target, err := parseURI(uri)
	if err != nil {
		return err
	}
	if h.Method == "" {
		h.Method = http.MethodGet
	}
	if h.Method, err = resolve("method", h.Method); err != nil {
		return err
	}
	if err := checkMethod(h.Method); err != nil {
		return err
	}
	header := make(http.Header)
	for name, values := range h.Header {
		for _, value := range values {
			if _, given := header["Host"]; given && strings.EqualFold(name, "Host") {
				return errors.New("header Host can be given once only")
			}
			if value, err = resolve("header "+name, value); err != nil {
				return err
			}
			if err := checkHeader(name, value); err != nil {
				return err
			}
			header.Add(name, value)
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

// provisionAnswer compiles what is expected.
func (h *HTTP) provisionAnswer() (err error) {
	if len(h.Status) == 0 {
		h.Status = []string{"2xx"}
	}
	if h.status, err = provisionStatus("status", h.Status); err != nil {
		return err
	}
	if h.draining, err = provisionStatus("drain_status", h.DrainStatus); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(h.ExpectHeader)) {
		if err := checkFieldName(name); err != nil {
			return fmt.Errorf("expect_header: %v", err)
		}
		value, err := resolvePattern("expect_header "+name, h.ExpectHeader[name])
		if err != nil {
			return err
		}
		h.header = append(h.header, expectedHeader{name: http.CanonicalHeaderKey(name), value: value})
	}
	if h.ExpectBody != "" {
		if h.body, err = resolvePattern("expect_body", h.ExpectBody); err != nil {
			return err
		}
	}
	if h.Expression != "" {
		text, err := resolveText("expression", h.Expression)
		if err != nil {
			return err
		}
		if h.expression, err = compileExpression(text); err != nil {
			return err
		}
	}
	if err := h.checkBody(); err != nil {
		return err
	}
	if h.MaxSize == 0 {
		h.MaxSize = defaultMaxSize
	}
	return checkMaxSize(h.MaxSize)
}

// provisionStatus resolves placeholders in a list of codes and reads it.
func provisionStatus(option string, list []string) (ranges []statusRange, err error) {
	for i, text := range list {
		if list[i], err = resolve(option, text); err != nil {
			return nil, err
		}
		r, err := parseStatus(option, list[i])
		if err != nil {
			return nil, err
		}
		ranges = append(ranges, r)
	}
	return ranges, nil
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
	began := time.Now()
	resp, err := h.send(ctx, up)
	if err != nil {
		return err
	}
	defer resp.Body.Close()

	draining := matches(h.draining, resp.StatusCode)
	if !draining {
		if !matches(h.status, resp.StatusCode) {
			return fmt.Errorf("status %d, want %s", resp.StatusCode, strings.Join(h.Status, " "))
		}
		for _, want := range h.header {
			if err := want.check(resp.Header.Values(want.name)); err != nil {
				return err
			}
		}
	}
	// The body is read even if nobody looks at it: an upstream that dies in the
	// middle of an answer is not alive.
	var body []byte
	limited := io.LimitReader(resp.Body, h.MaxSize)
	if h.looksAtBody() && !draining {
		body, err = io.ReadAll(limited)
	} else {
		_, err = io.Copy(io.Discard, limited)
	}
	if err != nil {
		return fmt.Errorf("reading the body: %w", err)
	}
	if draining {
		return fmt.Errorf("status %d: %w", resp.StatusCode, ErrDraining)
	}
	if h.body != nil && !h.body.Match(body) {
		return fmt.Errorf("body does not match '%s' in its first %s", h.body, humanize.IBytes(uint64(h.MaxSize)))
	}
	if h.expression != nil {
		return h.expression.check(ctx, reply{
			status: resp.StatusCode, header: resp.Header, body: body, took: time.Since(began),
		})
	}
	return nil
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
		err = failed.Err // the rest is known
	}
	return resp, err
}

// checkRedirect tells whether to follow a redirect.
func checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return fmt.Errorf("more than %d redirects", maxRedirects)
	}
	if req.URL.Scheme != via[0].URL.Scheme {
		return fmt.Errorf("redirect to another scheme: %s", req.URL.Redacted())
	}
	return nil
}

// check reports what is wrong with the values of the field.
func (e *expectedHeader) check(values []string) error {
	if slices.ContainsFunc(values, e.value.MatchString) {
		return nil
	}
	if len(values) == 0 {
		return fmt.Errorf("header %s is missing, want '%s'", e.name, e.value)
	}
	return fmt.Errorf("header %s is '%s', want '%s'", e.name, values[0], e.value)
}

// looksAtBody reports whether the body of the answer is part of what is expected.
func (h *HTTP) looksAtBody() bool {
	return h.body != nil || h.expression != nil && h.expression.readsBody
}

// String returns the check as it is shown.
func (h *HTTP) String() string { return "http " + h.URI }

func parseURI(uri string) (*url.URL, error) {
	if !strings.HasPrefix(uri, "/") || strings.HasPrefix(uri, "//") || strings.ContainsAny(uri, " #") {
		return nil, fmt.Errorf("uri must be a path that begins with one '/', with a query if need be; got '%s'", uri)
	}
	u, err := url.ParseRequestURI(uri)
	if err != nil {
		return nil, fmt.Errorf("uri must be a path that begins with one '/', with a query if need be: %v", err)
	}
	return u, nil
}

// checkBody rejects a check that could never pass.
func (h *HTTP) checkBody() error {
	if h.Method != http.MethodHead {
		return nil
	}
	if h.ExpectBody != "" {
		return fmt.Errorf("expect_body: %w", errHEAD)
	}
	if h.expression != nil && h.expression.readsBody {
		return fmt.Errorf("expression: %w", errHEAD)
	}
	return nil
}

func checkRequestBody(body string) error {
	if len(body) > maxRequestBody {
		return fmt.Errorf("request_body must not be longer than %s", humanize.IBytes(maxRequestBody))
	}
	return nil
}

func checkMethod(method string) error {
	if !httpguts.ValidHeaderFieldName(method) { // both are tokens, RFC 9110, section 9.1
		return fmt.Errorf("method must be an HTTP method, like GET or HEAD; got '%s'", method)
	}
	return nil
}

func checkFieldName(name string) error {
	if !httpguts.ValidHeaderFieldName(name) {
		return fmt.Errorf("a field name has letters, digits and hyphens; got '%s'", name)
	}
	return nil
}

func checkHeader(name, value string) error {
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
		return fmt.Errorf("header Host must be a host, with a port if need be; got '%s'", value)
	}
	return nil
}

func checkMaxSize(size int64) error {
	if size < 1 || size > maxMaxSize {
		return errors.New("max_size must be a size from 1 byte to 64MiB, like 64KiB")
	}
	return nil
}

// Interface guards
var (
	_ Prober                = (*HTTP)(nil)
	_ UpstreamValidator     = (*HTTP)(nil)
	_ Overrider             = (*HTTP)(nil)
	_ caddy.Provisioner     = (*HTTP)(nil)
	_ caddyfile.Unmarshaler = (*HTTP)(nil)
)
