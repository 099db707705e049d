// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// secret is the value of PROBE_SECRET in the environment. It must not be shown.
const secret = "hunter2hunter2"

// wantNoSecret fails if a text contains the secret, or does not contain what it should.
func wantNoSecret(t *testing.T, name, got, want string) {
	t.Helper()
	if got == "" || strings.Contains(got, "hunter2") || strings.Contains(got, url.QueryEscape("hunter2")) {
		t.Errorf("%s: got %q, want something without the secret", name, got)
	}
	if !strings.Contains(got, want) {
		t.Errorf("%s: got %q, want it to have %q", name, got, want)
	}
}

// An upstream may return what it was sent in any part of its answer, and it may send
// what is expected, or almost.
func TestHTTP_ReasonsAndLabelsShowNoValueOfAPlaceholder(t *testing.T) {
	t.Setenv("PROBE_SECRET", secret)
	const (
		ok     = "HTTP/1.1 200 OK\r\n"
		nearly = "hunter2hunter3"
	)
	body := func(text string) string { return fmt.Sprintf("%sContent-Length: %d\r\n\r\n%s", ok, len(text), text) }
	for _, test := range []struct{ name, options, answer, want string }{
		{"header", `"expect_header":{"X-Token":"^{env.PROBE_SECRET}$"}`, ok + "X-Token: " + nearly + "\r\n\r\n", "header X-Token does not match '^{env.PROBE_SECRET}$'"},
		{"header missing", `"expect_header":{"X-Token":"^{env.PROBE_SECRET}$"}`, body(""), "header X-Token is missing, want '^{env.PROBE_SECRET}$'"},
		{"body", `"expect_body":"^{env.PROBE_SECRET}$"`, body(nearly), "body does not match '^{env.PROBE_SECRET}$'; got 14 bytes"},
		{"expression", `"expression":"body == '{env.PROBE_SECRET}'"`, body(nearly), "expression is false: body == '{env.PROBE_SECRET}'"},
		{"expression, key", `"expression":"headers['{env.PROBE_SECRET}'][0] == 'a'"`, body(""), "expression cannot be evaluated: headers['{env.PROBE_SECRET}'][0] == 'a'"},
		{"expression, regexp", `"expression":"body.matches('(' + '{env.PROBE_SECRET}')"`, body(""), "expression cannot be evaluated: body.matches('(' + '{env.PROBE_SECRET}')"},
		{"expression, not JSON", `"expression":"json.a == '{env.PROBE_SECRET}'"`, body(nearly), "expression: the body is not JSON"},
		{"expression, other type", `"expression":"json['{env.PROBE_SECRET}']"`, body(`{"` + secret + `":1}`), "expression gives a value of the type double, want true or false: json['{env.PROBE_SECRET}']"},
		{"status", `"status":["{env.PROBE_STATUS}"]`, body(secret), "status 200, want {env.PROBE_STATUS}"},

		{"echo of the URI", `"uri":"/{env.PROBE_SECRET}","expect_body":"^ok$"`, body("Cannot GET /" + secret), `"Cannot GET /{env.PROBE_SECRET}"`},
		{"echo of a header", `"header":{"Authorization":["Bearer {env.PROBE_SECRET}"]},"expect_body":"^ok$"`, body("bad token " + secret), `"bad token {env.PROBE_SECRET}"`},
		{"echo of the body", `"method":"POST","request_body":"{\"a\":\"{env.PROBE_SECRET}\"}","expect_body":"^ok$"`, body(`{"a":"` + secret + `"}`), `{env.PROBE_SECRET}`},
		{"echo at the cut", `"uri":"/{env.PROBE_SECRET}","expect_body":"^ok$"`, body(strings.Repeat("x", 58) + secret), `xxx`},
		{"echo in JSON", `"uri":"/{env.PROBE_SECRET}","expression":"json.a"`, body("not JSON: " + secret), `{env.PROBE_SECRET}`},
		{"echo as a key", `"uri":"/{env.PROBE_SECRET}","expression":"json.all(k, headers[k][0] == '')"`, body(`{"` + secret + `":1}`), `no such key: {env.PROBE_SECRET}`},
		{"echo in a header", `"uri":"/{env.PROBE_SECRET}","expect_header":{"X-A":"^a$"}`, ok + "X-A: " + secret + "\r\n\r\n", `header X-A is "{env.PROBE_SECRET}", want '^a$'`},
		{"echo in an encoding", `"uri":"/{env.PROBE_SECRET}","expect_body":"a"`, ok + "Content-Encoding: " + secret + "\r\n\r\nb", `Content-Encoding "{env.PROBE_SECRET}"`},
		{"echo in a redirect", `"uri":"/{env.PROBE_SECRET}"`, "HTTP/1.1 301 Moved\r\nLocation: https://app1/" + secret + "?a\r\n\r\n", `Location "https://app1/{env.PROBE_SECRET}?a"`},
		{"echo in a redirect that is followed", `"uri":"/{env.PROBE_SECRET}","follow_redirects":true`, "HTTP/1.1 301 Moved\r\nLocation: https://app1/" + secret + "\r\n\r\n", `redirect`},
		{"echo as garbage", `"uri":"/{env.PROBE_SECRET}"`, "GET /" + secret + " HTTP/1.1\r\n\r\n", `{env.PROBE_SECRET}`},
		{"echo of garbage", `"uri":"/{env.PROBE_SECRET}"`, "HTTP/1.1 200 OK\r\n" + secret + "\r\n\r\n", `{env.PROBE_SECRET}`},
	} {
		t.Setenv("PROBE_STATUS", "5xx")
		up := newUpstream(t, "tcp", serve(t, answer(test.answer)), nil)
		config := test.options
		if !strings.Contains(config, `"uri"`) {
			config = `"uri":"/",` + config
		}
		h := load(t, "{"+config+"}")
		wantNoSecret(t, test.name, text(run(t, h, up, long)), test.want)
		wantNoSecret(t, test.name+", label", h.String(), "http /")
	}
}

// The text of an error of the transport can contain the URL.
func TestHTTP_ErrorsOfTheTransportShowNoValueOfAPlaceholder(t *testing.T) {
	t.Setenv("PROBE_SECRET", secret)
	h := load(t, `{"uri":"/healthz?token={env.PROBE_SECRET}","header":{"X-Token":["{env.PROBE_SECRET}"]}}`)
	up := Upstream{Scheme: "http", Host: "app1", Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
		return nil, fmt.Errorf("asking %s with %q: %w", r.URL, r.Header, io.ErrUnexpectedEOF)
	})}
	wantNoSecret(t, "reason", text(h.Probe(t.Context(), up)), "/healthz?token={env.PROBE_SECRET}")
	wantNoSecret(t, "label", h.String(), "http /healthz?token={env.PROBE_SECRET}")
}

// Labels have all options that tell checks apart, as written.
func TestKinds_LabelsShowNoValueOfAPlaceholder(t *testing.T) {
	t.Setenv("PROBE_SECRET", secret)
	const name = `"tls_server_name":"{env.PROBE_SECRET}.test"`
	for _, test := range []struct {
		kind interface {
			kind
			fmt.Stringer
		}
		config, want string
	}{
		{
			new(HTTP), `{"uri":"/{env.PROBE_SECRET}","header":{"Host":["{env.PROBE_SECRET}.test"],"X-Token":["{env.PROBE_SECRET}"]},` + name + `}`,
			"http /{env.PROBE_SECRET} Host {env.PROBE_SECRET}.test header X-Token tls_server_name {env.PROBE_SECRET}.test",
		},
		{
			new(GRPC), `{"service":"{env.PROBE_SECRET}","authority":"{env.PROBE_SECRET}.test",` + name + `}`,
			"grpc {env.PROBE_SECRET} authority {env.PROBE_SECRET}.test tls_server_name {env.PROBE_SECRET}.test",
		},
		{new(TLS), `{` + name + `}`, "tls tls_server_name {env.PROBE_SECRET}.test"},
		{new(TCP), `{"send":"{env.PROBE_SECRET}","expect":"{env.PROBE_SECRET}"}`, "tcp"},
	} {
		if got := loadKind(t, test.kind, test.config).String(); got != test.want {
			t.Errorf("%s:\n got %q\nwant %q", test.config, got, test.want)
		}
	}
}

// Errors of the config show it as written.
func TestKinds_ErrorsOfTheConfigShowNoValueOfAPlaceholder(t *testing.T) {
	for _, value := range []string{"hunter2 (", "hunter2\r\n", "hunter2 %zz", "'hunter2", "http://hunter2.test/x", "/hunter2 x"} {
		t.Setenv("PROBE_SECRET", value)
		for _, test := range []struct {
			kind   kind
			config string
			fails  bool // with every value
		}{
			{new(HTTP), `{"uri":"{env.PROBE_SECRET}"}`, true},
			{new(HTTP), `{"uri":"/%{env.PROBE_SECRET}"}`, true},
			{new(HTTP), `{"uri":"/","method":"{env.PROBE_SECRET}"}`, false},
			{new(HTTP), `{"uri":"/","header":{"Host":["{env.PROBE_SECRET}"]}}`, false},
			{new(HTTP), `{"uri":"/","header":{"X-A":["{env.PROBE_SECRET}"]}}`, false},
			{new(HTTP), `{"uri":"/","status":["{env.PROBE_SECRET}"]}`, true},
			{new(HTTP), `{"uri":"/","drain_status":["{env.PROBE_SECRET}"]}`, true},
			{new(HTTP), `{"uri":"/","expect_header":{"X-A":"({env.PROBE_SECRET}"}}`, true},
			{new(HTTP), `{"uri":"/","expect_body":"[{env.PROBE_SECRET}"}`, true},
			{new(HTTP), `{"uri":"/","expression":"{env.PROBE_SECRET} +"}`, true},
			{new(HTTP), `{"uri":"/","expression":"status == '{env.PROBE_SECRET}'"}`, true},
			{new(HTTP), `{"uri":"/","expression":"body.matches('({env.PROBE_SECRET}')"}`, true},
			{new(TCP), `{"expect":"({env.PROBE_SECRET}"}`, true},
			{new(GRPC), `{"authority":"a b{env.PROBE_SECRET}"}`, true},
		} {
			err := provision(test.kind, test.config)
			if err == nil && !test.fails {
				continue
			}
			wantNoSecret(t, fmt.Sprintf("%s with %q", test.config, value), text(err), "")
		}
	}
}

func TestTCP_ReasonsShowNoValueOfAPlaceholder(t *testing.T) {
	t.Setenv("PROBE_SECRET", secret)
	for _, test := range []struct{ name, config, answer, want string }{
		{"expected, closed", `{"expect":"^{env.PROBE_SECRET}$"}`, "hunter2hunter3", "the connection was closed after 14 bytes, want '^{env.PROBE_SECRET}$'"},
		{"expected, too much", `{"expect":"^{env.PROBE_SECRET}$"}`, strings.Repeat("hunter2hunter3", 5000), "got 65536 bytes, which does not match '^{env.PROBE_SECRET}$'"},
		{"expected, silence", `{"expect":"^{env.PROBE_SECRET}$"}`, "", "the connection was closed after nothing, want '^{env.PROBE_SECRET}$'"},
		{"echo of what was sent", `{"send":"AUTH {env.PROBE_SECRET}\\r\\n","expect":"OK"}`, "ERR AUTH " + secret, `the connection was closed after "ERR AUTH {env.PROBE_SECRET}", want 'OK'`},
		{"what cannot be seen", `{"expect":"OK"}`, "\u202eERR\u200b\xff", `the connection was closed after "\u202eERR\u200b\xff", want 'OK'`},
	} {
		addr := talk(t, func(conn net.Conn) {
			io.WriteString(conn, test.answer)
			if tcp, ok := conn.(*net.TCPConn); ok {
				tcp.CloseWrite()
			}
			untilClosed(conn)
		})
		p := loadKind(t, new(TCP), test.config)
		wantNoSecret(t, test.name, text(run(t, p, way{addr: addr}.upstream(t), long)), test.want)
		wantNoSecret(t, test.name+", label", p.String(), "tcp")
	}
}

func TestGRPC_ReasonsAndLabelsShowNoValueOfAPlaceholder(t *testing.T) {
	t.Setenv("PROBE_SECRET", secret)
	for _, test := range []struct {
		name   string
		handle http.HandlerFunc
		want   string
	}{
		{"not found", grpcAnswer("5", "", ""), "the health service does not know the service 'app.{env.PROBE_SECRET}'"},
		{"echo in a message", grpcAnswer("13", "no such service: app."+secret+"%e2%80%ae", ""), `no such service: app.{env.PROBE_SECRET}\u202e`},
		{"echo as a status", grpcAnswer("app."+secret, "", ""), `"app.{env.PROBE_SECRET}"`},
		{"echo as a type", plainAnswer(200, "text/"+secret), `"text/{env.PROBE_SECRET}"`},
	} {
		p := loadKind(t, new(GRPC), `{"service":"app.{env.PROBE_SECRET}","authority":"{env.PROBE_SECRET}.test"}`)
		addr := serveH2C(t, test.handle)
		wantNoSecret(t, test.name, text(run(t, p, grpcUpstream(t, p, addr, nil), long)), test.want)
		wantNoSecret(t, test.name+", label", p.String(), "grpc app.{env.PROBE_SECRET}")
	}
}

// Errors of TLS contain the server name.
func TestTLS_ReasonsShowNoValueOfAPlaceholder(t *testing.T) {
	t.Setenv("PROBE_SECRET", secret)
	issuer := testkit.NewAuthority(t)
	cert := issuer.Between(-time.Hour, time.Hour)
	addr := talk(t, func(conn net.Conn) {
		server := tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{cert}})
		_ = server.HandshakeContext(t.Context())
		untilClosed(server)
	})
	const config = `{"tls_server_name":"{env.PROBE_SECRET}.test"`
	for _, test := range []struct {
		kind interface {
			kind
			Overrider
		}
		config string
	}{
		{new(TLS), config + "}"},
		{new(HTTP), config + `,"uri":"/"}`},
		{new(GRPC), config + "}"},
	} {
		if err := provision(test.kind, test.config); err != nil {
			t.Fatal(err)
		}
		up := way{addr: addr, tls: &tls.Config{RootCAs: issuer.Pool()}, differs: test.kind.Overrides()}.upstream(t)
		wantNoSecret(t, fmt.Sprintf("%T", test.kind), text(run(t, test.kind, up, long)), "not {env.PROBE_SECRET}.test")
	}
}
