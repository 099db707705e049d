// SPDX-License-Identifier: Apache-2.0

package test

import (
	"bufio"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// The clients of an upstream that drains stay there, and new ones go elsewhere. When it stops,
// its clients move with one new cookie each, and stay where they are when it returns. The same
// holds with Caddy's own policy cookie as the option select.
func TestSticky_DrainKeepsClientsAndDeathMovesThem(t *testing.T) {
	for name, options := range map[string]string{
		"sticky":        quickSticky,
		"select cookie": strings.Replace(quickSticky, "sticky {\n\t\t\t\tsecret s3cret\n", "select cookie lb s3cret {\n\t\t\t\tfallback round_robin\n", 1),
	} {
		t.Run(name, func(t *testing.T) {
			c, backends := startSticky(t, []string{"a", "b"}, func(b []*testkit.Backend) string { return stickySite(b, options) })
			six := newVisitors(t, c, 6)
			for _, v := range six {
				v.ask(c.URL())
				if v.set != 1 {
					t.Errorf("the first answer sets %d cookies, want 1", v.set)
				}
			}
			testkit.Shares(t, "at first", at(six), map[string]int{"a": 3, "b": 3})
			for _, v := range six {
				v.wantMore(t, "bound", c.URL(), v.at, 5, 0)
			}

			c.Patch(backends[0].Addr, `{"mode":"drain"}`)
			for _, v := range six {
				v.wantMore(t, "while a drains, bound", c.URL(), v.at, 5, 0)
			}
			for _, v := range newVisitors(t, c, 4) {
				v.wantMore(t, "while a drains, new", c.URL(), "b", 3, 1)
			}
			if name == "sticky" {
				if got := c.One(backends[0].Addr); got.Bound == 0 || got.EffectiveWeight != 0 || got.Serving {
					t.Errorf("the one that drains: %+v, want bound requests and no others", got)
				}
			}

			backends[0].Set(testkit.Refusing)
			before := make(map[*visitor]int)
			for _, v := range six {
				before[v] = v.set
			}
			testkit.Eventually(t, testkit.Patience, "all have moved", func() bool {
				moved := true
				for _, v := range six {
					if got := v.ask(c.URL()); got.Status != http.StatusOK || got.Body != "b" {
						t.Errorf("after a has stopped: %v, want an answer of b", got)
					}
					moved = moved && len(v.client.Jar.Cookies(urlOf(t, c.URL()))) == 1 && v.cookie(t, c.URL()) == valueOf("s3cret", backends[1].Addr)
				}
				return moved
			})
			moved := 0
			for _, v := range six {
				v.wantMore(t, "moved", c.URL(), "b", 3, 0)
				if n := v.set - before[v]; n > 1 {
					t.Errorf("the move sets %d cookies, want 1", n)
				} else {
					moved += n
				}
			}
			if moved != 3 {
				t.Errorf("%d of the 3 clients of a got a new cookie", moved)
			}

			testkit.Eventually(t, testkit.Patience, "a is down", func() bool { return c.Down(backends[0].Addr) })
			backends[0].Set(testkit.Well)
			c.Patch(backends[0].Addr, `{"mode":"ready"}`)
			testkit.Eventually(t, testkit.Patience, "a is back", func() bool { return c.One(backends[0].Addr).Serving })
			for _, v := range six {
				v.wantMore(t, "after a is back", c.URL(), "b", 3, 0)
			}
			newcomers := newVisitors(t, c, 4)
			for _, v := range newcomers {
				v.ask(c.URL())
			}
			testkit.Shares(t, "new ones after a is back", at(newcomers), map[string]int{"a": 2, "b": 2})
		})
	}
}

// Of 4,000 new clients, each upstream gets exactly what its weight says, in the normal order,
// though bound clients ask in between.
func TestSticky_NewClientsGoByWeight(t *testing.T) {
	c, backends := startSticky(t, []string{"a", "b"}, func(b []*testkit.Backend) string {
		return stickySite(b, quickSticky+"\nweight "+b[0].Addr+" 1\nweight "+b[1].Addr+" 3")
	})
	client := c.Client()
	bound := newVisitors(t, c, 1)[0]
	bound.ask(c.URL())
	var order []string
	for i := range 4000 {
		got := testkit.Ask(client, c.URL())
		if cookies := got.Header.Values("Set-Cookie"); len(cookies) != 1 || got.Status != http.StatusOK {
			t.Fatalf("answer %v with the cookies %q, want one", got, cookies)
		}
		order = append(order, got.Body)
		if i%40 == 0 {
			bound.wantMore(t, "bound", c.URL(), bound.at, 1, 0)
		}
	}
	for i := 0; i+4 <= len(order); i += 4 {
		four := order[i : i+4]
		if n := strings.Count(strings.Join(four, ""), "a"); n != 1 {
			t.Fatalf("requests %d to %d went to %s, want one of four to a", i+1, i+4, four)
		}
	}
	if got := c.One(backends[0].Addr).Bound + c.One(backends[1].Addr).Bound; got != 100 {
		t.Errorf("the list has %d requests of bound clients, want 100", got)
	}
}

// After a retry, the answer sets one cookie: that of the upstream that has answered. The error
// page of Caddy sets none.
func TestSticky_OneCookieAfterARetry(t *testing.T) {
	const options = testkit.SingleCheck + "\nobserve off\neject off\nsticky {\nsecret s3cret\n}"
	for _, test := range []struct {
		name, handler string
		first, other  testkit.Conduct
		error         int // the status if there is no answer, else 0
	}{
		{"refused", "lb_retries 1", testkit.Refusing, testkit.Well, 0},
		{"reset", "lb_retries 1", testkit.Resetting, testkit.Well, 0},
		{"an answer that is retried", "lb_retries 1\nlb_retry_match {\nexpression `{rp.status_code} == 502`\n}", testkit.Shallow, testkit.Well, 0},
		{"refused twice", "lb_retries 1", testkit.Refusing, testkit.Refusing, http.StatusBadGateway},
		{"refused twice, and tried for a time", "lb_try_duration 300ms\nlb_try_interval 20ms", testkit.Refusing, testkit.Refusing, http.StatusBadGateway},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, backends := startSticky(t, []string{"a", "b"}, func(b []*testkit.Backend) string {
				return strings.Replace(stickySite(b, options, test.handler), "http:// {", "http:// {\nhandle_errors {\nrespond \"sorry\" {err.status_code}\n}", 1)
			})
			// bound to a before it fails
			bound := "lb=" + valueOf("s3cret", backends[0].Addr)
			backends[0].Set(test.first)
			backends[1].Set(test.other)
			client := c.Client()
			tries := 4
			if test.error != 0 {
				tries = 2
			}
			for i := range tries {
				cookie := ""
				if i >= tries/2 {
					cookie = bound
				}
				got := askWith(client, c.URL(), cookie)
				cookies := got.Header.Values("Set-Cookie")
				switch {
				case test.error != 0:
					if got.Status != test.error || got.Body != "sorry" || len(cookies) != 0 {
						t.Errorf("answer %v with the cookies %q, want the error page without any", got, cookies)
					}
				case cookie != "": // it comes back to its own
					if got.Body != "b" || len(cookies) != 0 {
						t.Errorf("bound: answer %v with the cookies %q, want one of b without any", got, cookies)
					}
				default:
					if want := "lb=" + valueOf("s3cret", backends[1].Addr) + "; Path=/; HttpOnly; SameSite=Lax"; got.Body != "b" || !slices.Equal(cookies, []string{want}) {
						t.Errorf("new: answer %v with the cookies %q, want one of b with %q", got, cookies, want)
					}
				}
			}
			if requests, _ := backends[0].Seen(); test.first == testkit.Shallow && requests == 0 {
				t.Error("none was retried")
			}
		})
	}
}

// Without an upstream that may be asked, there is no cookie.
func TestSticky_NoCookieWithoutAnUpstream(t *testing.T) {
	c, backends := startSticky(t, []string{"a"}, func(b []*testkit.Backend) string { return stickySite(b, quickSticky+"\nfail_open off") })
	backends[0].Set(testkit.Sick)
	testkit.Eventually(t, testkit.Patience, "it is down", func() bool {
		return c.Down(backends[0].Addr) && c.One(backends[0].Addr).EffectiveWeight == 0
	})
	for _, cookie := range []string{"", "lb=" + valueOf("s3cret", backends[0].Addr)} {
		got := askWith(c.Client(), c.URL(), cookie)
		if cookies := got.Header.Values("Set-Cookie"); got.Status != http.StatusServiceUnavailable || len(cookies) != 0 {
			t.Errorf("answer %v with the cookies %q, want 503 without any", got, cookies)
		}
	}
}

// What Caddy's own policy cookie has set is understood, and the reverse, given the same name
// and secret. With another one it is not.
func TestSticky_ReadsAndWritesTheCookieOfCaddy(t *testing.T) {
	c, _ := startSticky(t, []string{"a", "b", "c"}, func(b []*testkit.Backend) string {
		pool := func(path, policy string) string {
			return fmt.Sprintf("handle %s {\nreverse_proxy %s {\n%s\n}\n}\n", path, testkit.Addresses(b...), policy)
		}
		return "http:// {\n" +
			pool("/core", "lb_policy cookie shop s3cret") + pool("/other", "lb_policy cookie shop 0ther") +
			pool("/alive", "lb_policy alive {\n"+testkit.SingleCheck+"\nsticky shop {\nsecret s3cret\n}\n}") + "}\n"
	})
	for _, paths := range [][2]string{{"/core", "/alive"}, {"/alive", "/core"}} {
		for _, v := range newVisitors(t, c, 20) {
			v.ask(c.URL() + paths[0])
			if v.set != 1 {
				t.Fatalf("%s: the first answer sets %d cookies, want 1", paths[0], v.set)
			}
			v.wantMore(t, "of "+paths[0]+", at "+paths[1], c.URL()+paths[1], v.at, 3, 0)
			v.wantMore(t, "of "+paths[0]+", back there", c.URL()+paths[0], v.at, 1, 0)
		}
	}
	for _, v := range newVisitors(t, c, 10) {
		v.ask(c.URL() + "/other")
		if v.ask(c.URL() + "/alive"); v.set != 2 {
			t.Errorf("a cookie of another secret: %d were set, want one more", v.set)
		}
		v.wantMore(t, "bound anew", c.URL()+"/alive", v.at, 3, 0)
	}
}

// The cookie is for TLS only where the client uses TLS, as far as Caddy or a proxy that is
// trusted knows, and else also without. Caddy's own policy cookie does the same.
func TestSticky_SecureFollowsTheClient(t *testing.T) {
	const plain, secure = "; Path=/; HttpOnly; SameSite=Lax", "; Path=/; HttpOnly; Secure; SameSite=None"
	for _, trusted := range []bool{false, true} {
		t.Run(fmt.Sprintf("a trusted proxy: %v", trusted), func(t *testing.T) {
			backends := testkit.StartBackends(t, "a")
			global, ifTrusted := "", plain
			if trusted {
				global, ifTrusted = "servers {\ntrusted_proxies static 127.0.0.0/8\n}", secure
			}
			site := fmt.Sprintf(`{
	handle /core {
		reverse_proxy %[1]s {
			lb_policy cookie lb s3cret
		}
	}
	reverse_proxy %[1]s {
		lb_policy alive {
			%[2]s
		}
	}
}
`, backends[0].Addr, quickSticky)
			c := testkit.StartCaddyWith(t, global, "http:// "+site+"https://localhost "+site)
			testkit.Eventually(t, testkit.Patience, "it is up", func() bool { return c.Up(backends[0].Addr) })
			wants := func(what string, client *http.Client, url string, proto []string, attributes string) {
				t.Helper()
				for _, path := range []string{"/core", "/"} {
					header := make(http.Header)
					if proto != nil {
						header["X-Forwarded-Proto"] = proto
					}
					got := testkit.AskHost(client, url+path, "", header)
					want := "lb=" + valueOf("s3cret", backends[0].Addr) + attributes
					if cookies := got.Header.Values("Set-Cookie"); got.Err != nil || !slices.Equal(cookies, []string{want}) {
						t.Errorf("%s, %s: answer %v with the cookies %q, want %q", what, path, got, cookies, want)
					}
				}
			}
			wants("plain", c.Client(), c.URL(), nil, plain)
			wants("plain, with the field https", c.Client(), c.URL(), []string{"https"}, ifTrusted)
			wants("plain, with the field http", c.Client(), c.URL(), []string{"http"}, plain)
			testkit.Eventually(t, testkit.Patience, "there is a certificate", func() bool { return testkit.Ask(c.ClientOf(1), c.SecureURL()).Err == nil })
			for version := 1; version <= 3; version++ {
				wants(fmt.Sprintf("HTTP/%d with TLS", version), c.ClientOf(version), c.SecureURL(), nil, secure)
			}
			wants("TLS, with the field http", c.ClientOf(1), c.SecureURL(), []string{"http"}, secure)
		})
	}
}

// Maintenance and a drain that rebinds move clients for good, each with one cookie.
func TestSticky_OperatorsMoveClients(t *testing.T) {
	for name, change := range map[string]string{"maintenance": `{"mode":"maintenance"}`, "rebind": `{"mode":"drain","rebind":true}`} {
		t.Run(name, func(t *testing.T) {
			c, backends := startSticky(t, []string{"a", "b"}, func(b []*testkit.Backend) string { return stickySite(b, quickSticky) })
			six := newVisitors(t, c, 6)
			for _, v := range six {
				v.ask(c.URL())
			}
			was := make(map[*visitor]string)
			for _, v := range six {
				was[v] = v.at
			}
			c.Patch(backends[0].Addr, change)
			for _, v := range six {
				moves := 0
				if was[v] == "a" {
					moves = 1
				}
				v.wantMore(t, "of "+was[v], c.URL(), "b", 4, moves)
			}
			c.Patch(backends[0].Addr, `{"mode":"ready"}`)
			testkit.Eventually(t, testkit.Patience, "a is back", func() bool { return c.One(backends[0].Addr).Serving })
			for _, v := range six {
				v.wantMore(t, "after a is back", c.URL(), "b", 4, 0)
			}
		})
	}
}

// An answer that switches protocols sets the cookie, too, and the connection of a client that
// is bound goes to its upstream.
func TestSticky_AnUpgradeSetsTheCookie(t *testing.T) {
	c, backends := startSticky(t, []string{"a", "b"}, func(b []*testkit.Backend) string { return stickySite(b, quickSticky) })
	for _, b := range backends {
		b.Answer(func(w http.ResponseWriter, _ *http.Request) bool {
			conn, buffered, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return true
			}
			defer conn.Close()
			fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\nSet-Cookie: own=%s\r\n\r\n", b.Name)
			line, _ := buffered.ReadString('\n')
			fmt.Fprint(conn, b.Name+" "+line)
			return true
		})
	}
	upgrade := func(cookie string) (from string, cookies []string) {
		t.Helper()
		conn := dialPlain(t, c)
		fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\nCookie: %s\r\n\r\n", cookie)
		reader := bufio.NewReader(conn)
		response, err := http.ReadResponse(reader, nil)
		if err != nil || response.StatusCode != http.StatusSwitchingProtocols {
			t.Fatalf("answer %v, error %v, want 101", response, err)
		}
		fmt.Fprint(conn, "hello\n")
		line, err := reader.ReadString('\n')
		name, rest, _ := strings.Cut(line, " ")
		if err != nil || rest != "hello\n" {
			t.Fatalf("%q, %v", line, err)
		}
		return name, response.Header.Values("Set-Cookie")
	}
	dials := map[string]string{"a": backends[0].Addr, "b": backends[1].Addr}
	seen := make(map[string]bool)
	for range 4 {
		name, cookies := upgrade("x=y")
		value := "lb=" + valueOf("s3cret", dials[name])
		if want := []string{"own=" + name, value + "; Path=/; HttpOnly; SameSite=Lax"}; !slices.Equal(cookies, want) {
			t.Errorf("the cookies %q, want %q", cookies, want)
		}
		seen[name] = true
		if again, cookies := upgrade(value); again != name || !slices.Equal(cookies, []string{"own=" + name}) {
			t.Errorf("bound to %s: answered by %s with the cookies %q", name, again, cookies)
		}
	}
	if len(seen) != 2 {
		t.Errorf("new clients went to %v only", seen)
	}
}
