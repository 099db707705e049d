// SPDX-License-Identifier: Apache-2.0

package test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/fcgi"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// A misfit is a site that works, with a check that fails.
type misfit struct {
	upstream  string // as reverse_proxy has it
	uri       string // of the check
	check     string // its further options
	transport string // the options of transport http
	fastCGI   bool
	requests  bool // they go on while the check fails
}

// site is the site, with what the documents say to write.
func (m misfit) site(remedy string) string {
	check, transport, inHandler := m.check, m.transport, ""
	switch name, rest, _ := strings.Cut(remedy, " "); name {
	case "check":
		m.uri = strings.TrimPrefix(rest, "http ")
	case "keepalive":
		transport += "\n" + remedy
	case "root":
		inHandler = remedy
	default:
		check += "\n" + remedy
	}
	if m.uri == "" {
		m.uri = "/healthz"
	}
	policy := fmt.Sprintf("lb_policy alive {\ncheck http %s {\ninterval 100ms\n%s\n}\n}\n", m.uri, check)
	if m.fastCGI {
		return fmt.Sprintf("http:// {\nroot * /srv/www\nphp_fastcgi %s {\n%s\n%s}\n}\n", m.upstream, inHandler, policy)
	}
	return fmt.Sprintf("http:// {\nreverse_proxy %s {\n%s\ntransport http {\n%s\n}\n}\n}\n", m.upstream, policy, transport)
}

// For each reason, the table has the words that a probe gives while requests succeed, and what
// to write, after which the probe passes too.
func TestTroubleshooting_ReasonsAndRemedies(t *testing.T) {
	t.Setenv("HEALTH_TOKEN", "Bearer 4711")
	misfits := map[string]func(t *testing.T) misfit{
		"`status 400, want 2xx`": func(t *testing.T) misfit {
			return judging(t, func(r *http.Request) int { return either(r.Host == "www.example.com", 400) }, "")
		},
		"`status 301, want 2xx; Location \"https://`": func(t *testing.T) misfit {
			return judging(t, func(r *http.Request) int { return either(r.Header.Get("X-Forwarded-Proto") == "https", 301) }, "https://www.example.com/healthz")
		},
		"`status 302, want 2xx; Location \"/login`": func(t *testing.T) misfit {
			return judging(t, func(*http.Request) int { return 302 }, "/login")
		},
		"`status 404, want 2xx`": func(t *testing.T) misfit {
			m := judging(t, func(r *http.Request) int { return either(r.URL.Path == "/healthz", 404) }, "")
			m.uri = "/api/healthz"
			return m
		},
		"`status 401, want 2xx`": func(t *testing.T) misfit {
			return judging(t, func(r *http.Request) int { return either(r.Header.Get("Authorization") == "Bearer 4711", 401) }, "")
		},
		"`certificate is valid for`": func(t *testing.T) misfit {
			ca := testkit.NewAuthority(t)
			return withHealthPort(t, ca, testkit.StartRecorder(t, "tcp", "", ca.Server("app.internal"), nil).Addr)
		},
		"`first record does not look like a TLS handshake`": func(t *testing.T) misfit {
			return withHealthPort(t, testkit.NewAuthority(t), startServer(t, true, false))
		},
		"`connection reset`, or `malformed HTTP response`": func(t *testing.T) misfit {
			return withHealthPort(t, nil, startServer(t, false, true))
		},
		"`http2: failed reading the frame payload`, `http2: client conn could not be established`, or `http2: frame too large`": func(t *testing.T) misfit {
			m := withHealthPort(t, nil, startServer(t, true, false))
			m.upstream = "h2c://" + testkit.StartRecorder(t, "tcp", "", nil, nil).Addr
			return m
		},
		"`no verdict within 2s`": func(t *testing.T) misfit {
			return judging(t, func(r *http.Request) int {
				select {
				case <-time.After(2200 * time.Millisecond):
				case <-r.Context().Done():
				}
				return 200
			}, "")
		},
		"`meanwhile requests were answered`": func(t *testing.T) misfit {
			return misfit{upstream: startSingle(t), check: "timeout 400ms", requests: true}
		},
		"`status 404, want 2xx`, over FastCGI": func(t *testing.T) misfit {
			stream, err := net.Listen("tcp", testkit.Loopback(testkit.FreePort(t)))
			if err != nil {
				t.Fatal(err)
			}
			done := make(chan struct{})
			go func() {
				defer close(done)
				_ = fcgi.Serve(stream, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					w.WriteHeader(either(fcgi.ProcessEnv(r)["DOCUMENT_ROOT"] == "/srv/www", 404))
				}))
			}()
			t.Cleanup(func() { stream.Close(); <-done })
			return misfit{upstream: stream.Addr().String(), uri: "/health.php", fastCGI: true}
		},
	}
	_, tables := testkit.Documentation(t)
	table := testkit.TablesOf(t, "the reason contains", tables)[0]
	for _, row := range table.Rows {
		build := misfits[row[0]]
		if build == nil {
			t.Errorf("%s: no test for %s", table, row[0])
			continue
		}
		delete(misfits, row[0])
		t.Run(row[0], func(t *testing.T) {
			m := build(t)
			c := testkit.StartCaddy(t, m.site(""))
			client := c.Client()
			works := func() bool { return testkit.Ask(client, c.URL()).Status == http.StatusOK }
			if m.requests {
				traffic := testkit.StartTraffic(t, 1, func() testkit.Answer { return testkit.Ask(client, c.URL()) })
				t.Cleanup(traffic.Stop)
				works = func() bool {
					before := traffic.Answered()
					return testkit.Poll(testkit.Patience, func() bool { return traffic.Answered() > before+10 }) && traffic.Err() == nil
				}
			}
			var reason string
			testkit.Eventually(t, testkit.Patience, "it is down", func() bool {
				rows := c.List(nil)
				if len(rows) != 1 || rows[0].Status != "down" {
					return false
				}
				reason = rows[0].Why
				return true
			})
			// which of several it is depends on what the probe meets first
			words := testkit.InCode(row[0])
			if !slices.ContainsFunc(words, func(want string) bool { return strings.Contains(reason, want) }) && runtime.GOOS == "linux" { // others have other words for errors of sockets
				t.Errorf("the reason is %q, want one with one of %q", reason, words)
			}
			if !works() {
				t.Error("the site does not work")
			}
			c.Load(m.site(testkit.InCode(row[2])[0]))
			testkit.Eventually(t, testkit.Patience, "it is up with "+row[2], func() bool { rows := c.List(nil); return len(rows) == 1 && rows[0].Status == "up" })
		})
	}
	for reason := range misfits {
		t.Errorf("%s has no row for %s", table, reason)
	}
}

// either returns 200 if a request is as wanted.
func either(wanted bool, otherwise int) int {
	if wanted {
		return http.StatusOK
	}
	return otherwise
}

// judging is an application that answers its health page with a status, and everything else well.
func judging(t *testing.T, judge func(*http.Request) int, location string) misfit {
	return misfit{upstream: testkit.StartRecorder(t, "tcp", "", nil, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/" {
			return
		}
		status := judge(r)
		if location != "" {
			w.Header().Set("Location", location)
		}
		w.WriteHeader(status)
	}).Addr}
}

// withHealthPort is an application with a health port of another server. Its requests use TLS,
// given an authority.
func withHealthPort(t *testing.T, ca *testkit.Authority, health string) misfit {
	t.Helper()
	_, port, err := net.SplitHostPort(health)
	if err != nil {
		t.Fatal(err)
	}
	m := misfit{check: "port " + port}
	if ca == nil {
		m.upstream = testkit.StartRecorder(t, "tcp", "", nil, nil).Addr
		return m
	}
	_, port, err = net.SplitHostPort(testkit.StartRecorder(t, "tcp", "", ca.Server("localhost"), nil).Addr)
	if err != nil {
		t.Fatal(err)
	}
	m.upstream, m.transport = "https://localhost:"+port, "tls_trust_pool file `"+ca.File+"`"
	return m
}

// startServer runs a server that speaks one version of HTTP only, without TLS, until the test
// ends.
func startServer(t *testing.T, http1, h2c bool) string {
	t.Helper()
	stream, err := net.Listen("tcp", testkit.Loopback(testkit.FreePort(t)))
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{ErrorLog: testkit.Discard, Protocols: new(http.Protocols), Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})}
	server.Protocols.SetHTTP1(http1)
	server.Protocols.SetUnencryptedHTTP2(h2c)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(stream)
	}()
	t.Cleanup(func() { server.Close(); <-done })
	return stream.Addr().String()
}

// startSingle runs a server of HTTP/1.1 that serves one connection at a time, until the test
// ends. It closes a connection without a request for a second, as one can be that the config
// before has left.
func startSingle(t *testing.T) string {
	t.Helper()
	stream, err := net.Listen("tcp", testkit.Loopback(testkit.FreePort(t)))
	if err != nil {
		t.Fatal(err)
	}
	done, end := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := stream.Accept()
			if err != nil {
				return
			}
			serveSingle(conn, end)
		}
	}()
	t.Cleanup(func() { close(end); stream.Close(); <-done })
	return stream.Addr().String()
}

// serveSingle serves a connection until one side closes it, or all ends.
func serveSingle(conn net.Conn, end <-chan struct{}) {
	defer conn.Close()
	closed := make(chan struct{})
	defer close(closed)
	go func() {
		select {
		case <-end:
			conn.Close()
		case <-closed:
		}
	}()
	reader := bufio.NewReader(conn)
	for {
		_ = conn.SetReadDeadline(time.Now().Add(time.Second))
		request, err := http.ReadRequest(reader)
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, request.Body)
		if _, err := io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"); err != nil || request.Close {
			return
		}
	}
}
