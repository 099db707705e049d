// SPDX-License-Identifier: Apache-2.0

package test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// These tests look at when the slot of a request is free again: a limit of 1 without a queue
// answers 503 as long as it is not.

// slotSite is a site with a limit of 1 over an upstream.
func slotSite(app *testkit.Recorder, more ...string) string {
	return limitedSite(app.Addr, "max_requests 1", more...)
}

// isFree reports whether the slot is free.
func isFree(c *testkit.Caddy, client *http.Client) bool {
	return testkit.Ask(client, c.URL()+"/free").Status == http.StatusOK
}

// A stream of events has its slot until it ends, or its client leaves.
func TestSlots_Streams(t *testing.T) {
	end := testkit.NewGate(t)
	app := testkit.StartRecorder(t, "tcp", "", nil, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/stream" {
			w.Header().Set("Content-Type", "text/event-stream")
			_, _ = io.WriteString(w, "data: one\n\n")
			_ = http.NewResponseController(w).Flush()
			end.Pass(r)
			_, _ = io.WriteString(w, "data: two\n\n")
		}
	})
	c := testkit.StartCaddy(t, slotSite(app))
	awaitServing(t, c, app.Addr)
	client := c.Client()
	open := func() (*http.Response, *bufio.Reader) {
		response, err := client.Get(c.URL() + "/stream")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = response.Body.Close() })
		reader := bufio.NewReader(response.Body)
		if line, err := reader.ReadString('\n'); line != "data: one\n" {
			t.Fatalf("read %q, error %v", line, err)
		}
		return response, reader
	}
	response, _ := open()
	testkit.Stays(t, 200*time.Millisecond, "the stream has the slot", func() bool { return !isFree(c, client) })
	_ = response.Body.Close() // the client leaves
	testkit.Eventually(t, testkit.Patience, "the slot is free when the client has left", func() bool { return isFree(c, client) })
	_, reader := open()
	if isFree(c, client) {
		t.Error("another stream does not have the slot")
	}
	end.Open()
	if rest, err := io.ReadAll(reader); !strings.HasSuffix(string(rest), "data: two\n\n") || err != nil {
		t.Errorf("read %q, error %v", rest, err)
	}
	testkit.Eventually(t, testkit.Patience, "the slot is free at the end of the stream", func() bool { return isFree(c, client) })
}

// An upgraded connection has its slot until it is closed. It passes on when one side has ended
// what it sends, and keeps the slot then.
func TestSlots_UpgradedConnections(t *testing.T) {
	end := testkit.NewGate(t)
	app := testkit.StartRecorder(t, "tcp", "", nil, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/upgrade" {
			return
		}
		conn, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		sent, _ := io.ReadAll(buffered) // until the client has ended what it sends
		_, _ = io.WriteString(conn, "got "+string(sent)+"\n")
		<-end.Opened
		_, _ = io.WriteString(conn, "that was all\n")
	})
	c := testkit.StartCaddy(t, slotSite(app))
	awaitServing(t, c, app.Addr)
	client := c.Client()
	open := func() (*net.TCPConn, *bufio.Reader) {
		conn, err := net.Dial("tcp", strings.TrimPrefix(c.URL(), "http://"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		_ = conn.SetDeadline(time.Now().Add(testkit.Patience))
		fmt.Fprint(conn, "GET /upgrade HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		reader := bufio.NewReader(conn)
		if response, err := http.ReadResponse(reader, nil); err != nil || response.StatusCode != http.StatusSwitchingProtocols {
			t.Fatalf("answer %v, error %v", response, err)
		}
		return conn.(*net.TCPConn), reader
	}
	conn, reader := open()
	_, _ = io.WriteString(conn, "a line")
	if isFree(c, client) {
		t.Error("the connection does not have the slot")
	}
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if line, err := reader.ReadString('\n'); line != "got a line\n" {
		t.Fatalf("read %q, error %v", line, err)
	}
	testkit.Stays(t, 200*time.Millisecond, "the half that is left has the slot", func() bool { return !isFree(c, client) })
	end.Open()
	if rest, err := io.ReadAll(reader); string(rest) != "that was all\n" || err != nil {
		t.Errorf("read %q, error %v", rest, err)
	}
	testkit.Eventually(t, testkit.Patience, "the slot is free at the end of the connection", func() bool { return isFree(c, client) })

	conn, _ = open()
	if isFree(c, client) {
		t.Error("another connection does not have the slot")
	}
	_ = conn.SetLinger(0)
	_ = conn.Close()
	testkit.Eventually(t, testkit.Patience, "the slot is free when the client has gone", func() bool { return isFree(c, client) })
}

// A client that leaves in the middle of a body, of its own or of the answer, frees the slot.
func TestSlots_ClientsThatLeave(t *testing.T) {
	app := testkit.StartRecorder(t, "tcp", "", nil, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/upload":
			_, _ = io.Copy(io.Discard, r.Body)
		case "/download":
			part := make([]byte, 64<<10)
			for r.Context().Err() == nil {
				if _, err := w.Write(part); err != nil {
					return
				}
			}
		}
	})
	c := testkit.StartCaddy(t, slotSite(app))
	awaitServing(t, c, app.Addr)
	client := c.Client()
	for name, request := range map[string]string{
		"upload":   "POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nthe beginning",
		"download": "GET /download HTTP/1.1\r\nHost: x\r\n\r\n",
	} {
		for range 5 {
			conn, err := net.Dial("tcp", strings.TrimPrefix(c.URL(), "http://"))
			if err != nil {
				t.Fatal(err)
			}
			before := app.Count("/" + name)
			_, _ = io.WriteString(conn, request)
			testkit.Eventually(t, testkit.Patience, "it has arrived", func() bool { return app.Count("/"+name) > before })
			if isFree(c, client) {
				t.Errorf("%s: it does not have the slot", name)
			}
			_ = conn.(*net.TCPConn).SetLinger(0)
			_ = conn.Close()
			testkit.Eventually(t, testkit.Patience, name+": the slot is free", func() bool { return isFree(c, client) })
		}
	}
}

// Requests that are selected and never sent give their slots back: the address depends on the
// request and is no address, or the handler refuses the request after the selection.
func TestSlots_RequestsThatAreNotSent(t *testing.T) {
	app := testkit.StartRecorder(t, "tcp", "", nil, nil)
	_, port, _ := net.SplitHostPort(app.Addr)
	c := testkit.StartCaddy(t, fmt.Sprintf("http:// {\nhandle /dial* {\n%s\n}\nhandle {\n%s\n}\n}",
		limitedProxy("dial", "127.0.0.1:{http.request.header.Port}", "max_requests 1"),
		limitedProxy("shop", app.Addr, "max_requests 1", "request_buffers 1MiB", "header_up Incremental ?1")))
	awaitServing(t, c, app.Addr)
	client := c.Client()
	for range 3 {
		for _, tc := range []struct {
			port string
			ok   bool
		}{{"not a port", false}, {"1-9", false}, {port, true}} {
			var a testkit.Answer
			testkit.Poll(testkit.Patience, func() bool { // the slot is free a moment after the answer
				a = testkit.AskHost(client, c.URL()+"/dial", "", http.Header{"Port": {tc.port}})
				return a.Status != http.StatusServiceUnavailable
			})
			if (a.Status == http.StatusOK) != tc.ok || a.Status == http.StatusServiceUnavailable {
				t.Errorf("port %q: %v", tc.port, a)
			}
		}
		if got := post(client, c.URL()+"/refused", strings.NewReader("form")); strings.HasPrefix(got, "200") || strings.HasPrefix(got, "503") {
			t.Errorf("a request that the handler refuses: %s", got)
		}
		testkit.Eventually(t, testkit.Patience, "the slot is free", func() bool { return isFree(c, client) })
	}
	if app.Count("/refused") > 0 {
		t.Error("the request was not refused")
	}
}

// forward_auth and what is behind it ask the same upstream, which has a limit of 1: each request
// needs two slots, one after the other, and none waits for itself. The auth answer has a body.
func TestSlots_ForwardAuth(t *testing.T) {
	app := testkit.StartRecorder(t, "tcp", "", nil, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Remote-User", "tester")
		fmt.Fprintf(w, "user %q", r.Header.Get("Remote-User"))
	})
	policy := "lb_policy alive {\nname %s\n" + testkit.QuickCheck + "\nmax_requests 1\nqueue 10s\nobserve off\n}"
	c := testkit.StartCaddy(t, fmt.Sprintf("http:// {\nforward_auth %[1]s {\nuri /auth\ncopy_headers Remote-User\n%[2]s\n}\nreverse_proxy %[1]s {\n%[3]s\n}\n}",
		app.Addr, fmt.Sprintf(policy, "auth"), fmt.Sprintf(policy, "shop")))
	awaitServing(t, c, app.Addr)
	client := c.Client()
	r := limitedRun{clients: 8, requests: 400, longest: longestRun, ask: func() testkit.Answer {
		a := testkit.Ask(client, c.URL())
		if a.Body != `user "tester"` {
			t.Errorf("answer %v", a)
		}
		return a
	}}.run()
	if r.statuses[http.StatusOK] != r.sent || r.slowest > 5*time.Second {
		t.Errorf("statuses %v of %d requests, the slowest took %v", r.statuses, r.sent, r.slowest)
	}
	wantIdle(t, c, "auth")
	wantIdle(t, c, "shop")
}

// The page of handle_errors comes from the upstream that has failed the request: the slot of
// the failed try is free by then, and that of an answer which handle_response made an error of.
func TestSlots_HandleErrors(t *testing.T) {
	app := testkit.StartRecorder(t, "tcp", "", nil, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/lost":
			panic(http.ErrAbortHandler)
		case "/refused":
			http.Error(w, "no", http.StatusForbidden)
		default:
			_, _ = io.WriteString(w, "sorry")
		}
	})
	policy := "lb_policy alive {\nname %s\n" + testkit.QuickCheck + "\nmax_requests 1\nqueue 10s\nretries off\nobserve off\n}"
	c := testkit.StartCaddy(t, fmt.Sprintf(`http:// {
	reverse_proxy %[1]s {
		%[2]s
		@refused status 403
		handle_response @refused {
			error 404
		}
	}
	handle_errors {
		rewrite /sorry
		reverse_proxy %[1]s {
			%[3]s
		}
	}
}`, app.Addr, fmt.Sprintf(policy, "shop"), fmt.Sprintf(policy, "page")))
	awaitServing(t, c, app.Addr)
	client := c.Client()
	for _, path := range []string{"/lost", "/refused"} {
		r := limitedRun{clients: 4, requests: 100, longest: longestRun, ask: func() testkit.Answer {
			a := testkit.Ask(client, c.URL()+path)
			if a.Body != "sorry" {
				t.Errorf("%s: answer %v", path, a)
			}
			return a
		}}.run()
		if r.slowest > 5*time.Second {
			t.Errorf("%s: the slowest took %v", path, r.slowest)
		}
	}
	wantIdle(t, c, "shop")
	wantIdle(t, c, "page")
}

// With retries each try has a slot of its own, and an upstream that fails all of them keeps
// none.
func TestSlots_Retries(t *testing.T) {
	for _, options := range []string{"lb_retries 3", "lb_try_duration 5s"} {
		t.Run(options, func(t *testing.T) {
			backends := startCounting(t, func() { time.Sleep(time.Millisecond) }, "a", "b")
			failing := testkit.StartBackend(t, "failing", nil)
			upstreams := addressesOf(backends) + " " + failing.Addr
			site := strings.Replace(limitedSite(upstreams, "max_requests 2\nqueue 10s", options), testkit.QuickCheck, testkit.SingleCheck, 1)
			c := testkit.StartCaddy(t, strings.Replace(site, "retries off", "", 1))
			awaitServing(t, c, upstreams)
			client := c.Client()
			for _, conduct := range []testkit.Conduct{testkit.Refusing, testkit.Resetting} {
				failing.Set(conduct)
				r := limitedRun{clients: 16, requests: 200, longest: longestRun, ask: func() testkit.Answer { return testkit.Ask(client, c.URL()) }}.run()
				if r.statuses[http.StatusOK] != r.sent || r.slowest > 5*time.Second {
					t.Errorf("statuses %v of %d requests, the slowest took %v", r.statuses, r.sent, r.slowest)
				}
			}
			for _, b := range backends {
				if b.most.Load() != 2 {
					t.Errorf("%s had %d requests at once, want 2", b.Name, b.most.Load())
				}
			}
			wantIdle(t, c, "shop")
			failing.Set(testkit.Well)
			if got := testkit.Tally(client, c.URL(), 6); got["failing"] != 2 {
				t.Errorf("when it no longer fails: %v", got)
			}
		})
	}
}
