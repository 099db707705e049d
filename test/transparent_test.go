// SPDX-License-Identifier: Apache-2.0

package test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/quic-go/quic-go/http3"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// playground is an upstream that does what handlers have to pass on.
func playground(stream <-chan struct{}) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/upgrade", func(w http.ResponseWriter, _ *http.Request) {
		conn, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		for {
			line, err := buffered.ReadString('\n')
			if err != nil {
				break
			}
			_, _ = io.WriteString(conn, strings.ToUpper(line))
		}
		_, _ = io.WriteString(conn, "that was all\n")
	})
	mux.HandleFunc("/trailers", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "Sum")
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %v", body, r.Trailer)
		w.Header().Set("Sum", "42")
	})
	mux.HandleFunc("/hints", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Link", "</style.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Del("Link")
		_, _ = io.WriteString(w, "after the hints")
	})
	mux.HandleFunc("/length", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "length %d, encoding %v, body %q", r.ContentLength, r.TransferEncoding, body)
	})
	mux.HandleFunc("/stream", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, "one\n")
		_ = http.NewResponseController(w).Flush()
		select {
		case <-stream:
		case <-r.Context().Done():
		}
		_, _ = io.WriteString(w, "two\n")
	})
	mux.HandleFunc("/auth", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Password") != "secret" {
			http.Error(w, "go away", http.StatusUnauthorized)
			return
		}
		w.Header().Set("Remote-User", "tester of "+r.Header.Get("X-Forwarded-Method"))
	})
	mux.HandleFunc("/user", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "user %q", r.Header.Get("Remote-User"))
	})
	mux.HandleFunc("/missing", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "not here", http.StatusNotFound) })
	mux.HandleFunc("/nothing", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	mux.HandleFunc("/large", func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		w.Header().Set("Received", fmt.Sprint(n))
		_, _ = w.Write(bytes.Repeat([]byte("large "), 1<<18))
	})
	return mux
}

// startHTTP3 runs an HTTP/3 server until the test ends.
func startHTTP3(tb testing.TB, ca *testkit.Authority, handler http.Handler) (address string) {
	tb.Helper()
	address = testkit.Loopback(testkit.FreePort(tb))
	packets, err := net.ListenPacket("udp", address)
	if err != nil {
		tb.Fatal(err)
	}
	server := &http3.Server{TLSConfig: http3.ConfigureTLSConfig(ca.Server("app.internal")), Handler: handler}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(packets)
	}()
	tb.Cleanup(func() {
		server.Close()
		packets.Close()
		<-done
	})
	return address
}

// Everything that a handler passes on is as with another policy: the transport with an
// observer around it does what the transport does.
func TestObserver_ChangesNothing(t *testing.T) {
	stream := make(chan struct{})
	site := playground(stream)
	app := testkit.StartRecorder(t, "tcp", "", nil, site.ServeHTTP)
	ca := testkit.NewAuthority(t)
	quick := startHTTP3(t, ca, site)
	refused := testkit.Refused(t)
	php := startPHP(t)
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "index.php"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	text := "http:// {\n"
	for name, policy := range map[string]string{"core": "lb_policy round_robin", "alive": "lb_policy alive"} {
		overQUIC := policy
		if name == "alive" {
			overQUIC += " /user" // no check by TCP
		}
		text += strings.NewReplacer("NAME", name, "QPOLICY", overQUIC, "POLICY", policy, "APP", app.Addr, "QUICK", quick, "REFUSED", refused, "PHP", php, "ROOT", root, "CA", ca.File).Replace(`
	handle_path /NAME/plain/* {
		reverse_proxy APP {
			POLICY
			flush_interval -1
		}
	}
	handle_path /NAME/buffered/* {
		reverse_proxy APP {
			POLICY
			request_buffers 1MiB
			response_buffers 1MiB
		}
	}
	handle_path /NAME/h2c/* {
		reverse_proxy h2c://APP {
			POLICY
		}
	}
	handle_path /NAME/h3/* {
		reverse_proxy https://QUICK {
			QPOLICY
			transport http {
				versions 3
				tls_trust_pool file ` + "`CA`" + `
				tls_server_name app.internal
			}
		}
	}
	handle_path /NAME/guarded/* {
		forward_auth APP {
			uri /auth
			copy_headers Remote-User
			POLICY
		}
		reverse_proxy APP {
			POLICY
		}
	}
	handle_path /NAME/handled/* {
		reverse_proxy APP {
			POLICY
			@missing status 404
			handle_response @missing {
				respond "found {rp.status_code}" 203
			}
			@nothing status 204
			replace_status @nothing 205
		}
	}
	handle_path /NAME/php/* {
		root ` + "`ROOT`" + `
		php_fastcgi PHP {
			POLICY
		}
	}
	handle_path /NAME/retried/* {
		reverse_proxy REFUSED APP {
			POLICY
			lb_retries 2
			request_buffers 1MiB
		}
	}`)
	}
	c := testkit.StartCaddy(t, text+"\n}")
	testkit.Eventually(t, testkit.Patience, "all have a verdict", func() bool { return c.Up(app.Addr, quick, php) && c.Down(refused) })
	client := c.Client()

	for _, test := range []struct {
		what string
		want string // the beginning
		do   func(base string) string
	}{
		{"an upgrade", "101\nONE\nTWO\nthat was all\n", func(base string) string { return upgrade(t, c, base+"/plain/upgrade") }},
		{"trailers", `"body map[Check:[7]]" map[Sum:[42]]`, func(base string) string { return trailers(client, c.URL()+base+"/plain/trailers") }},
		{"trailers over HTTP/2", `"body map[Check:[7]]" map[`, func(base string) string { return trailers(client, c.URL()+base+"/h2c/trailers") }},
		{"early hints", "103 [</style.css>; rel=preload] 200 after the hints", func(base string) string { return hints(client, c.URL()+base+"/plain/hints") }},
		{"early hints over HTTP/2", "103 [</style.css>; rel=preload] 200 after the hints", func(base string) string { return hints(client, c.URL()+base+"/h2c/hints") }},
		{"a length", `200 "length 4, encoding [], body \"form\""`, func(base string) string { return post(client, c.URL()+base+"/plain/length", strings.NewReader("form")) }},
		{"no length", `200 "length -1, encoding [chunked], body \"form\""`, func(base string) string {
			return post(client, c.URL()+base+"/plain/length", io.MultiReader(strings.NewReader("form")))
		}},
		{"no body", `200 "length 0, encoding [], body \"\""`, func(base string) string { return post(client, c.URL()+base+"/plain/length", http.NoBody) }},
		{"a buffered body", `200 "length `, func(base string) string {
			return post(client, c.URL()+base+"/buffered/length", io.MultiReader(strings.NewReader("form")))
		}},
		{"a stream", "one then two", func(base string) string { return streamed(client, c.URL()+base+"/plain/stream", stream) }},
		{"large bodies", "1572864 bytes, received 1048576", func(base string) string { return large(client, c.URL()+base+"/plain/large") }},
		{"large bodies over HTTP/2", "1572864 bytes, received 1048576", func(base string) string { return large(client, c.URL()+base+"/h2c/large") }},
		{"HTTP/3", `200 "length 4, encoding [], body \"form\""`, func(base string) string { return post(client, c.URL()+base+"/h3/length", strings.NewReader("form")) }},
		{"large bodies over HTTP/3", "1572864 bytes, received 1048576", func(base string) string { return large(client, c.URL()+base+"/h3/large") }},
		{"a HEAD request", "200 \"\"", func(base string) string {
			return send(client, http.MethodHead, c.URL()+base+"/plain/length", "").String()
		}},
		{"no content", "204 \"\"", func(base string) string {
			return testkit.Ask(client, c.URL()+base+"/plain/nothing").String()
		}},
		{"another status", "205 \"\"", func(base string) string { return testkit.Ask(client, c.URL()+base+"/handled/nothing").String() }},
		{"handle_response", `203 "found 404"`, func(base string) string { return testkit.Ask(client, c.URL()+base+"/handled/missing").String() }},
		{"forward_auth, refused", "401 \"go away\\n\"", func(base string) string { return testkit.Ask(client, c.URL()+base+"/guarded/user").String() }},
		{"forward_auth", `200 "user \"tester of GET\""`, func(base string) string {
			return testkit.AskHost(client, c.URL()+base+"/guarded/user", "", http.Header{"Password": {"secret"}}).String()
		}},
		{"php_fastcgi", `200 "POST page form"`, func(base string) string { return post(client, c.URL()+base+"/php/any/page", strings.NewReader("form")) }},
		{"an incremental request that is to be buffered", "50", func(base string) string { return incremental(client, c.URL()+base+"/buffered/length") }},
		{"an incremental request over FastCGI", "50", func(base string) string { return incremental(client, c.URL()+base+"/php/any/page") }},
		{"a retry with a body", `200 "length 4, encoding [], body \"form\""`, func(base string) string {
			return post(client, c.URL()+base+"/retried/length", strings.NewReader("form"))
		}},
	} {
		t.Run(test.what, func(t *testing.T) {
			core, alive := test.do("/core"), test.do("/alive")
			if !strings.HasPrefix(core, test.want) {
				t.Errorf("with round_robin: %s, want %s…", core, test.want)
			}
			if alive != core {
				t.Errorf("with alive: %s, with round_robin: %s", alive, core)
			}
		})
	}
	for _, upstream := range []string{app.Addr, quick, php} {
		for _, row := range c.List(map[string][]string{"upstream": {upstream}}) {
			if row.Suspect || row.EjectedUntil != nil || row.Status != "up" || row.Requests != 0 {
				t.Errorf("afterwards: %+v", row)
			}
		}
	}
	for name, n := range c.Metrics() {
		if strings.HasPrefix(name, "accusations_total") && !strings.Contains(name, refused) && n > 0 {
			t.Errorf("%s is %v, want none", name, n)
		}
	}
}

// startPHP runs a FastCGI server that answers the method, the end of the path and the body.
func startPHP(tb testing.TB) string {
	tb.Helper()
	return serveFastCGI(tb, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %s", r.Method, path.Base(r.URL.Path), body)
	})
}

// upgrade upgrades a connection, writes two lines and the end, and returns what comes back.
func upgrade(t *testing.T, c *testkit.Caddy, path string) string {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(c.URL(), "http://"))
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(testkit.Patience))
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n", path)
	reader := bufio.NewReader(conn)
	response, err := http.ReadResponse(reader, nil)
	if err != nil {
		return err.Error()
	}
	got := fmt.Sprintln(response.StatusCode)
	for _, line := range []string{"one\n", "two\n"} {
		_, _ = io.WriteString(conn, line)
		back, err := reader.ReadString('\n')
		if err != nil {
			return got + err.Error()
		}
		got += back
	}
	_ = conn.(*net.TCPConn).CloseWrite()
	rest, _ := io.ReadAll(reader)
	return got + string(rest)
}

// post sends a body, and returns the status and body of the answer.
func post(client *http.Client, url string, body io.Reader) string {
	req, err := http.NewRequest(http.MethodPost, url, body)
	if err != nil {
		return err.Error()
	}
	return testkit.Do(client, req).String()
}

// incremental sends a body that is to be forwarded as it comes, and returns the status.
func incremental(client *http.Client, url string) string {
	req, err := http.NewRequest(http.MethodPost, url, io.MultiReader(strings.NewReader("form")))
	if err != nil {
		return err.Error()
	}
	req.Header.Set("Incremental", "?1")
	return fmt.Sprint(testkit.Do(client, req).Status)
}

// trailers sends and receives trailers.
func trailers(client *http.Client, url string) string {
	req, err := http.NewRequest(http.MethodPost, url, io.MultiReader(strings.NewReader("body")))
	if err != nil {
		return err.Error()
	}
	req.Trailer = http.Header{"Check": {"7"}}
	response, err := client.Do(req)
	if err != nil {
		return err.Error()
	}
	defer response.Body.Close()
	body, _ := io.ReadAll(response.Body)
	return fmt.Sprintf("%q %v", body, response.Trailer)
}

// hints returns an answer with what came before it.
func hints(client *http.Client, url string) string {
	got := ""
	ctx := httptrace.WithClientTrace(context.Background(), &httptrace.ClientTrace{Got1xxResponse: func(code int, header textproto.MIMEHeader) error {
		got += fmt.Sprintf("%d %v ", code, header["Link"])
		return nil
	}})
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err.Error()
	}
	answer := testkit.Do(client, req)
	return fmt.Sprintf("%s%d %s", got, answer.Status, answer.Body)
}

// streamed lets the upstream go on only when the first part of an answer is there.
func streamed(client *http.Client, url string, gate chan<- struct{}) string {
	response, err := client.Get(url)
	if err != nil {
		return err.Error()
	}
	defer response.Body.Close()
	reader := bufio.NewReader(response.Body)
	first, _ := reader.ReadString('\n')
	select {
	case gate <- struct{}{}:
	case <-time.After(testkit.Patience):
		return "the upstream does not wait"
	}
	rest, _ := io.ReadAll(reader)
	return strings.TrimSpace(first) + " then " + strings.TrimSpace(string(rest))
}

// large sends and receives large bodies.
func large(client *http.Client, url string) string {
	req, err := http.NewRequest(http.MethodPost, url, bytes.NewReader(make([]byte, 1<<20)))
	if err != nil {
		return err.Error()
	}
	answer := testkit.Do(client, req)
	return fmt.Sprintf("%d bytes, received %s", len(answer.Body), answer.Header.Get("Received"))
}
