// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"golang.org/x/net/http/httpguts"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/proto"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-alive/caddy-alive/internal/grammar"
	"github.com/caddy-alive/caddy-alive/internal/placeholder"
	"github.com/caddy-alive/caddy-alive/internal/redact"
)

func init() { caddy.RegisterModule(GRPC{}) }

const (
	// grpcPrefix is the length of what precedes a gRPC message: the compression flag and
	// the length of the message.
	grpcPrefix = 5
	// maxGRPC bounds the answer, in bytes. A regular answer has a few bytes.
	maxGRPC = 64 << 10
	// maxTimeout is the largest number that Grpc-Timeout can have.
	maxTimeout = 99_999_999
)

// GRPC checks that an upstream reports its service as serving, by the gRPC health
// checking protocol (grpc.health.v1). It always uses HTTP/2: over TLS if the proxy uses
// TLS, and without TLS otherwise.
type GRPC struct {
	// The service to ask for. Default: none, which stands for the whole server.
	Service string `json:"service,omitempty"`

	// The name of the server in the request (`:authority`). Default: the address that is
	// probed.
	Authority string `json:"authority,omitempty"`

	// Metadata to send with each call. The values of names that end in `-bin` are base64.
	// Global placeholders, and those of the upstream that is probed, can be used.
	Header http.Header `json:"header,omitempty"`

	// `http` for HTTP/2 without TLS, or `https`. Default: the scheme of the proxy.
	Scheme string `json:"scheme,omitempty"`

	TLSOptions

	authority string // with its placeholders replaced
	metadata  []headerField
	message   []byte        // the request, with its prefix
	secrets   redact.Values // what must not be in a reason
}

// CaddyModule returns the Caddy module information.
func (GRPC) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "alive.probes.grpc",
		New: func() caddy.Module { return new(GRPC) },
	}
}

// UnmarshalCaddyfile sets up the module from Caddyfile tokens. Syntax:
//
//	grpc [<service>] {
//		authority <name>
//		header    <name> <value>
//		scheme    http|https
//		tls_server_name <name>
//		tls_insecure_skip_verify
//	}
func (g *GRPC) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // consume the kind
	if d.NextArg() {
		g.Service = d.Val()
	}
	if d.NextArg() {
		return d.Errf("a grpc check takes one service at most; got '%s' too", d.Val())
	}
	return grammar.ReadBlock(d, func(option string) error {
		switch option {
		case "authority":
			if !d.AllArgs(&g.Authority) || g.Authority == "" {
				return d.Err("authority takes one name, like app.internal")
			}
			if redact.HasPlaceholder(g.Authority) {
				return nil
			}
			return grammar.At(d, checkAuthority(g.Authority, g.Authority))
		case "header":
			return g.unmarshalHeader(d)
		case "scheme":
			if !d.AllArgs(&g.Scheme) || g.Scheme == "" {
				return d.Err("scheme takes http or https")
			}
			return grammar.At(d, checkScheme(g.Scheme))
		}
		known, err := g.TLSOptions.unmarshalOption(d)
		if !known {
			return UnrecognizedOption(d, "a grpc check", "authority", "header", "scheme", "tls_server_name", "tls_insecure_skip_verify")
		}
		return err
	}, func(option string) bool { return option == "header" })
}

// unmarshalHeader reads the option header, which d is at.
func (g *GRPC) unmarshalHeader(d *caddyfile.Dispenser) error {
	var name, value string
	if !d.AllArgs(&name, &value) {
		return d.Err("header takes a name and a value, like header X-Token secret")
	}
	if g.Header == nil {
		g.Header = make(http.Header)
	}
	g.Header.Add(name, value)
	if err := placeholder.Check("header "+name, value); err != nil {
		return d.WrapErr(err)
	}
	if redact.HasPlaceholder(value) {
		value = ""
	}
	return grammar.At(d, checkMetadata(name, value))
}

func checkAuthority(written, name string) error {
	if !httpguts.ValidHostHeader(name) {
		return fmt.Errorf("authority must be a host, optionally with a port; got '%s'", written)
	}
	return nil
}

// Provision resolves placeholders and prepares the request that all probes send.
func (g *GRPC) Provision(_ caddy.Context) (err error) {
	for _, option := range []string{g.Service, g.Authority, g.TLSServerName} {
		g.secrets.Learn(option)
	}
	service, err := resolve("service", g.Service)
	if err != nil {
		return err
	}
	if g.authority, err = resolve("authority", g.Authority); err != nil {
		return err
	}
	if err := checkAuthority(g.Authority, g.authority); err != nil {
		return err
	}
	if g.metadata, err = parseMetadata(g.Header, &g.secrets); err != nil {
		return err
	}
	if err := checkScheme(g.Scheme); err != nil {
		return err
	}
	if err := g.TLSOptions.provision(); err != nil {
		return err
	}
	message, err := proto.Marshal(&grpc_health_v1.HealthCheckRequest{Service: service})
	if err != nil {
		return fmt.Errorf("service: %v", err)
	}
	g.message = make([]byte, grpcPrefix, grpcPrefix+len(message))
	binary.BigEndian.PutUint32(g.message[1:], uint32(len(message)))
	g.message = append(g.message, message...)
	return nil
}

// Overrides returns how probes differ from proxied requests.
func (g *GRPC) Overrides() Overrides {
	o := g.TLSOptions.overrides()
	o.Scheme, o.HTTP2 = g.Scheme, true
	return o
}

// ValidateUpstream rejects proxies that do not speak HTTP.
func (g *GRPC) ValidateUpstream(up Upstream) error {
	if up.Transport == nil {
		return errHTTP("a grpc", up)
	}
	return addMetadata(make(http.Header), g.metadata, up)
}

// Probe calls the method Check. It speaks the gRPC protocol over HTTP/2, for a call
// with one message in each direction.
func (g *GRPC) Probe(ctx context.Context, up Upstream) error {
	return g.secrets.Error(g.probe(ctx, up))
}

func (g *GRPC) probe(ctx context.Context, up Upstream) error {
	req := (&http.Request{
		Method: http.MethodPost,
		URL:    &url.URL{Scheme: up.Scheme, Host: up.Host, Path: grpc_health_v1.Health_Check_FullMethodName},
		Host:   g.authority,
		Header: http.Header{
			"Content-Type":    {"application/grpc"},
			"Te":              {"trailers"},
			"User-Agent":      {"caddy-alive"},
			"Idempotency-Key": {}, // not sent; it allows net/http to send the request again
		},
		ContentLength: int64(len(g.message)),
		GetBody:       func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(g.message)), nil },
	}).WithContext(ctx)
	if err := addMetadata(req.Header, g.metadata, up); err != nil {
		return err
	}
	req.Body, _ = req.GetBody()
	if limit, ok := ctx.Deadline(); ok {
		// longer than the probe has: otherwise the server could end first, with another
		// reason
		req.Header.Set("Grpc-Timeout", strconv.FormatInt(min(max(2*time.Until(limit).Milliseconds(), 1), maxTimeout), 10)+"m")
	}
	resp, err := up.Transport.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.ProtoMajor != 2 { // net/http falls back to HTTP/1.1 if the server does not negotiate
		return fmt.Errorf("the upstream speaks %s, not HTTP/2", resp.Proto)
	}
	if kind := resp.Header.Get("Content-Type"); resp.StatusCode != http.StatusOK || !strings.HasPrefix(kind, "application/grpc") {
		return fmt.Errorf("not an answer of a gRPC server: status %d, content type %s", resp.StatusCode, quote(&g.secrets, []byte(kind)))
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxGRPC+1))
	if err != nil {
		return fmt.Errorf("reading the answer: %w", err)
	}
	if len(body) > maxGRPC {
		return fmt.Errorf("the answer is longer than %s", humanize.IBytes(maxGRPC))
	}
	status, trailer := resp.Trailer.Get("Grpc-Status"), resp.Trailer
	if status == "" { // an answer without a message has its status in the header
		status, trailer = resp.Header.Get("Grpc-Status"), resp.Header
	}
	if err := g.checkStatus(status, trailer.Get("Grpc-Message")); err != nil {
		return err
	}
	return g.checkMessage(body)
}

// checkStatus judges the gRPC status of the call.
func (g *GRPC) checkStatus(status, message string) error {
	if status == "" {
		return errors.New("the answer has no gRPC status")
	}
	number, err := strconv.ParseUint(status, 10, 32)
	if err != nil {
		return fmt.Errorf("the answer has no number as its gRPC status, but %s", quote(&g.secrets, []byte(status)))
	}
	code := codes.Code(number)
	if code == codes.OK {
		return nil
	}
	text := "gRPC status " + code.String()
	if code == codes.Unimplemented {
		text += ": the server has no health service (" + grpc_health_v1.Health_ServiceDesc.ServiceName + ")"
	}
	if code == codes.NotFound {
		text += ": the health service does not know the service '" + g.Service + "'"
	}
	if message != "" {
		if decoded, err := url.PathUnescape(message); err == nil {
			message = decoded
		}
		text += ": " + visible(g.secrets.Text(strings.TrimSpace(message)))
	}
	return errors.New(text)
}

// checkMessage judges the message of the answer.
func (g *GRPC) checkMessage(body []byte) error {
	if len(body) < grpcPrefix || int(binary.BigEndian.Uint32(body[1:])) != len(body)-grpcPrefix {
		return errors.New("the answer is not one gRPC message")
	}
	if body[0] != 0 {
		return errors.New("the answer is compressed, which the request did not allow")
	}
	var answer grpc_health_v1.HealthCheckResponse
	if err := proto.Unmarshal(body[grpcPrefix:], &answer); err != nil {
		return fmt.Errorf("the answer is no message of the health service: %w", err)
	}
	if answer.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		return fmt.Errorf("status %s, want SERVING", answer.GetStatus())
	}
	return nil
}

// String returns the check as it is shown.
func (g *GRPC) String() string {
	label := strings.TrimSuffix("grpc "+g.Service, " ")
	if g.Authority != "" {
		label += " authority " + g.Authority
	}
	return label + headerLabel(g.Header) + g.TLSOptions.label()
}

// Interface guards
var (
	_ Prober                = (*GRPC)(nil)
	_ UpstreamValidator     = (*GRPC)(nil)
	_ Overrider             = (*GRPC)(nil)
	_ caddy.Provisioner     = (*GRPC)(nil)
	_ caddyfile.Unmarshaler = (*GRPC)(nil)
)
