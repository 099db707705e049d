// SPDX-License-Identifier: Apache-2.0

package test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// visitor is a client that keeps cookies. At first it is bound to no upstream.
type visitor struct {
	client *http.Client
	at     string // the name of the backend that answered last
	set    int    // how many cookies its answers have set
}

// newVisitor returns one. Visitors that share a transport share connections.
func newVisitor(tb testing.TB, transport http.RoundTripper) *visitor {
	tb.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		tb.Fatal(err)
	}
	return &visitor{client: &http.Client{Transport: transport, Jar: jar, Timeout: testkit.Patience}}
}

// newVisitors returns n of them.
func newVisitors(tb testing.TB, c *testkit.Caddy, n int) (all []*visitor) {
	tb.Helper()
	transport := c.Client().Transport
	for range n {
		all = append(all, newVisitor(tb, transport))
	}
	return all
}

// ask sends a request with the cookies of the visitor.
func (v *visitor) ask(url string) testkit.Answer {
	got := testkit.Ask(v.client, url)
	v.set += len(got.Header.Values("Set-Cookie"))
	if got.Status == http.StatusOK {
		v.at = got.Body
	}
	return got
}

// wantMore fails the test unless n requests are answered by one backend, and the answers set
// so many cookies in all.
func (v *visitor) wantMore(tb testing.TB, what, url, backend string, n, cookies int) {
	tb.Helper()
	before := v.set
	for range n {
		if got := v.ask(url); got.Status != http.StatusOK || got.Body != backend {
			tb.Errorf("%s: answer %v, want one of %s", what, got, backend)
		}
	}
	if got := v.set - before; got != cookies {
		tb.Errorf("%s: %d requests set %d cookies, want %d", what, n, got, cookies)
	}
}

// at counts visitors by where they are.
func at(all []*visitor) map[string]int {
	count := make(map[string]int)
	for _, v := range all {
		count[v.at]++
	}
	return count
}

// valueOf returns the value of a cookie for an address, as Caddy's own policy cookie makes it.
func valueOf(secret, dial string) string {
	sum := hmac.New(sha256.New, []byte(secret))
	sum.Write([]byte(dial))
	return hex.EncodeToString(sum.Sum(nil))
}

// askWith sends a request with a field Cookie.
func askWith(client *http.Client, url, cookie string) testkit.Answer {
	return testkit.AskHost(client, url, "", http.Header{"Cookie": {cookie}})
}

// quickSticky is a check that notices soon, and cookies named lb with the secret "s3cret".
const quickSticky = `check http /healthz {
				interval 100ms
				fast_interval 50ms
				timeout 5s
				passes 1
				fails 2
			}
			sticky {
				secret s3cret
			}`

// stickySite is a site with one pool of the name shop, whose policy has these options.
func stickySite(backends []*testkit.Backend, options string, more ...string) string {
	return fmt.Sprintf(`
http:// {
	reverse_proxy %s {
		lb_policy alive {
			name shop
			%s
		}
		%s
	}
}`, testkit.Addresses(backends...), options, strings.Join(more, "\n\t\t"))
}

// addresses returns those of backends.
func addresses(backends []*testkit.Backend) (all []string) {
	for _, b := range backends {
		all = append(all, b.Addr)
	}
	return all
}

// startSticky runs backends behind a site that is made of them, and returns when all are up.
func startSticky(tb testing.TB, names []string, site func([]*testkit.Backend) string) (*testkit.Caddy, []*testkit.Backend) {
	tb.Helper()
	backends := testkit.StartBackends(tb, names...)
	c := testkit.StartCaddy(tb, site(backends))
	testkit.Eventually(tb, testkit.Patience, "all are up", func() bool { return c.Up(addresses(backends)...) })
	return c, backends
}

// urlOf parses a URL.
func urlOf(tb testing.TB, text string) *url.URL {
	tb.Helper()
	u, err := url.Parse(text)
	if err != nil {
		tb.Fatal(err)
	}
	return u
}

// cookie returns the value of the cookie that binds the visitor, empty if none does.
func (v *visitor) cookie(tb testing.TB, url string) string {
	tb.Helper()
	for _, c := range v.client.Jar.Cookies(urlOf(tb, url)) {
		if c.Name == "lb" {
			return c.Value
		}
	}
	return ""
}

// dialPlain connects to the plain sites, until the test ends.
func dialPlain(tb testing.TB, c *testkit.Caddy) net.Conn {
	tb.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(c.URL(), "http://"))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(testkit.Patience))
	return conn
}
