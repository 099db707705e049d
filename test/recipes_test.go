// SPDX-License-Identifier: Apache-2.0

package test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// These tests run the configs of docs/recipes.md as they are written, with servers of the test
// in place of those in them.

// recipe returns one of the configs of a section.
func recipe(t *testing.T, section string, which int, replace ...string) string {
	t.Helper()
	text := globalBlock.ReplaceAllString(testkit.BlocksUnder(t, "docs/recipes.md", section, "caddyfile")[which].Text, "")
	if strings.HasPrefix(text, "reverse_proxy") {
		text = "example.com {\n" + text + "}\n"
	}
	return strings.NewReplacer(replace...).Replace(publicSite.ReplaceAllString(text, "http:// {"))
}

// If no auth server works, no request passes. While one works, a POST finds it, and the
// application gets the body and what the auth server says, and never what the client claims.
func TestRecipeForwardAuth_PassesNothingUnasked(t *testing.T) {
	var breaks atomic.Pointer[string]
	mode := func(m string) { breaks.Store(&m) }
	mode("")
	auth := func(name string) *testkit.Recorder {
		return testkit.StartRecorder(t, "tcp", "", nil, func(w http.ResponseWriter, r *http.Request) {
			switch m := *breaks.Load(); {
			case r.URL.Path == "/api/health" && m != "all":
			case m == "all" || m == name:
				panic(http.ErrAbortHandler)
			case r.Method != http.MethodGet || r.URL.Path != "/api/verify":
				w.WriteHeader(http.StatusBadRequest)
			case r.Header.Get("Cookie") == "":
				w.WriteHeader(http.StatusUnauthorized)
			default:
				w.Header().Set("Remote-User", "tester")
			}
		})
	}
	a, b := auth("a"), auth("b")
	app := testkit.StartRecorder(t, "tcp", "", nil, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %q %q %s", r.Method, r.Header.Get("Remote-User"), r.Header.Get("Remote-Groups"), body)
	})
	other := testkit.StartBackend(t, "other", nil)
	other.Set(testkit.Refusing)
	c := testkit.StartCaddy(t, recipe(t, "Authentication by forward_auth", 0,
		"auth1:9091", a.Addr, "auth2:9091", b.Addr, "app1:8080", app.Addr, "app2:8080", other.Addr,
		"check http /api/health", "check http /api/health {\ninterval 50ms\n}"))
	testkit.Eventually(t, testkit.Patience, "all are up that work", func() bool { return c.Up(a.Addr, b.Addr, app.Addr) && c.Down(other.Addr) })
	client := c.Client()
	post := func(cookie string) testkit.Answer {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, c.URL()+"/order", strings.NewReader("one pizza"))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Remote-Groups", "admins")
		if cookie != "" {
			request.Header.Set("Cookie", cookie)
		}
		return testkit.Do(client, request)
	}
	const want = `POST "tester" "" one pizza`
	for _, m := range []string{"", "a", "b"} {
		mode(m)
		for range 4 {
			if got := post("session=1"); got.Status != http.StatusOK || got.Body != want {
				t.Errorf("auth server %q fails: got %v, want %q", m, got, want)
			}
		}
	}
	mode("")
	before := app.Count("/order")
	if got := post(""); got.Status != http.StatusUnauthorized {
		t.Errorf("without a session: %v", got)
	}
	mode("all")
	for range 4 {
		if got := post("session=1"); got.Err == nil && got.Status < http.StatusInternalServerError {
			t.Errorf("no auth server works: %v", got)
		}
	}
	testkit.Eventually(t, testkit.Patience, "both auth servers are down", func() bool { return c.Down(a.Addr, b.Addr) })
	if got := post("session=1"); got.Status != http.StatusServiceUnavailable {
		t.Errorf("the auth servers are down: %v, want 503", got)
	}
	if n := app.Count("/order") - before; n != 0 {
		t.Errorf("%d requests passed unasked", n)
	}
}

// An open WebSocket survives drain, maintenance and a reload, and new ones go elsewhere
// meanwhile. The wait for the upstream ends with it.
func TestRecipeWebSockets_SurviveDrainAndReload(t *testing.T) {
	echo := func(name string) *testkit.Recorder {
		return testkit.StartRecorder(t, "tcp", "", nil, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/chat" {
				return
			}
			conn, buffered, err := http.NewResponseController(w).Hijack()
			if err != nil {
				return
			}
			defer conn.Close()
			_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"+name+"\n")
			for {
				line, err := buffered.ReadString('\n')
				if err != nil {
					return
				}
				_, _ = io.WriteString(conn, name+" "+line)
			}
		})
	}
	a, b := echo("a"), echo("b")
	site := recipe(t, "WebSockets", 0, "chat1:8080", a.Addr, "chat2:8080", b.Addr)
	c := testkit.StartCaddy(t, site)
	testkit.Eventually(t, testkit.Patience, "both are up", func() bool { return c.Up(a.Addr, b.Addr) })
	open := func() (net.Conn, *bufio.Reader, string) {
		conn, err := net.Dial("tcp", strings.TrimPrefix(c.URL(), "http://"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		_ = conn.SetDeadline(time.Now().Add(testkit.Patience))
		fmt.Fprint(conn, "GET /chat HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
		reader := bufio.NewReader(conn)
		if response, err := http.ReadResponse(reader, nil); err != nil || response.StatusCode != http.StatusSwitchingProtocols {
			t.Fatalf("answer %v, error %v", response, err)
		}
		name, err := reader.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		return conn, reader, strings.TrimSpace(name)
	}
	conn, reader, name := open()
	of := map[string]string{"a": a.Addr, "b": b.Addr}
	works := func(when string) {
		t.Helper()
		fmt.Fprintf(conn, "%s\n", when)
		if line, err := reader.ReadString('\n'); line != name+" "+when+"\n" {
			t.Fatalf("%s: read %q, error %v", when, line, err)
		}
	}
	works("at first")
	if other, _, second := open(); second == name {
		t.Errorf("the second connection is at %s too, and not at the one with the fewest", second)
	} else {
		other.Close()
	}
	for _, m := range []string{"drain", "maintenance"} {
		if _, _, err := testkit.Command(t.Context(), c.Admin, m, of[name]); err != nil {
			t.Fatal(err)
		}
		works(m)
		if other, _, elsewhere := open(); elsewhere == name {
			t.Errorf("%s: a new connection goes to %s", m, name)
		} else {
			other.Close()
		}
		works("after " + m)
	}
	if _, _, err := testkit.Command(t.Context(), c.Admin, "drain", of[name]); err != nil {
		t.Fatal(err)
	}
	c.Load(site + "\n# another version\nhttp://another.localhost {\n}\n")
	works("reloaded")
	if _, stderr, err := testkit.Command(t.Context(), c.Admin, "drain", of[name], "--wait", "1s"); err == nil {
		t.Errorf("the wait ends while the connection is open: %s", stderr)
	}
	conn.Close()
	if _, stderr, err := testkit.Command(t.Context(), c.Admin, "drain", of[name], "--wait", "20s"); err != nil {
		t.Errorf("the wait does not end after the connection has: %v: %s", err, stderr)
	}
}

// While all upstreams are in maintenance, and while none works, visitors get the page with its
// status. After that, no request fails.
func TestRecipeMaintenancePage_ComesAndGoes(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "index.html"), []byte("Back soon."), 0o600); err != nil {
		t.Fatal(err)
	}
	all := testkit.StartBackends(t, "a", "b")
	c := testkit.StartCaddy(t, recipe(t, "A maintenance page", 0, "app1:8080", all[0].Addr, "app2:8080", all[1].Addr, "/srv/maintenance", "`"+dir+"`"))
	testkit.Eventually(t, testkit.Patience, "both are up", func() bool { return c.Up(all[0].Addr, all[1].Addr) })
	client := c.Client()
	isPage := func(a testkit.Answer) bool {
		return a.Status == http.StatusServiceUnavailable && a.Body == "Back soon." && a.Header.Get("Retry-After") == "300"
	}
	set := func(mode string) {
		for _, b := range all {
			if _, _, err := testkit.Command(t.Context(), c.Admin, mode, b.Addr); err != nil {
				t.Fatal(err)
			}
		}
	}
	set("maintenance")
	for _, path := range []string{"/", "/basket", "/style.css"} {
		if got := testkit.Ask(client, c.URL()+path); !isPage(got) {
			t.Errorf("%s: %v with %v, want the page", path, got, got.Header)
		}
	}
	set("ready")
	for range 10 { // one of them may have no verdict yet
		if got := testkit.Ask(client, c.URL()); got.Status != http.StatusOK {
			t.Errorf("ready: %v", got)
		}
	}
	testkit.Eventually(t, testkit.Patience, "both are up again", func() bool { return c.Up(all[0].Addr, all[1].Addr) })
	testkit.Shares(t, "ready", testkit.Tally(client, c.URL(), 10), map[string]int{"a": 5, "b": 5})
	for _, b := range all {
		b.Set(testkit.Refusing)
	}
	if got := testkit.Ask(client, c.URL()); got.Status != http.StatusBadGateway || got.Body != "Back soon." {
		t.Errorf("none works: %v, want the page", got)
	}
}

// The file closes the site for all but the own network, and opens it, without a reload.
func TestRecipeMaintenancePage_FollowsTheFile(t *testing.T) {
	for _, tc := range []struct {
		own  string
		open bool
	}{{"192.0.2.0/24", false}, {"127.0.0.0/8", true}} {
		dir := t.TempDir()
		all := testkit.StartBackends(t, "a", "b")
		c := testkit.StartCaddy(t, recipe(t, "A maintenance page", 1, "app1:8080", all[0].Addr, "app2:8080", all[1].Addr,
			"/srv/switches", "`"+dir+"`", "192.0.2.0/24", tc.own))
		client := c.Client()
		for _, closed := range []bool{false, true, false} {
			file := filepath.Join(dir, "closed")
			if closed {
				if err := os.WriteFile(file, nil, 0o600); err != nil {
					t.Fatal(err)
				}
			} else {
				_ = os.Remove(file)
			}
			got := testkit.Ask(client, c.URL()+"/basket")
			if closed && !tc.open {
				if got.Status != http.StatusServiceUnavailable || got.Body != "Back at noon." || got.Header.Get("Retry-After") == "" {
					t.Errorf("closed: %v", got)
				}
			} else if got.Status != http.StatusOK {
				t.Errorf("the file is there: %v, own network %s: %v", closed, tc.own, got)
			}
		}
		c.Stop()
	}
}

// The site passes on what begins with /alive/, with the password, and nothing else, however the
// path is written. Pages of other sites get nothing either.
func TestRecipeAdmin_PassesOnlyItsPart(t *testing.T) {
	all := testkit.StartBackends(t, "a", "b")
	c := startEmpty(t)
	site := recipe(t, "The admin API behind a password", 0, "localhost:2019", c.Admin, "<hash>", hashOfTest,
		"app1:8080", all[0].Addr, "app2:8080", all[1].Addr, "admin.example.com {", "http://admin.example.com {")
	c.Load(site)
	testkit.Eventually(t, testkit.Patience, "both are up", func() bool { return c.Up(all[0].Addr, all[1].Addr) })
	client := c.Client()
	client.Timeout = 4 * testkit.Patience // a password takes long on a busy machine
	ask := func(method, path, body, password string, header http.Header) testkit.Answer {
		t.Helper()
		request, err := http.NewRequestWithContext(t.Context(), method, c.URL(), strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		request.URL.Opaque = "//admin.example.com" + path // as it is written
		request.Host = "admin.example.com"
		if header != nil {
			request.Header = header
		}
		if password != "" {
			request.SetBasicAuth("operator", password)
		}
		return testkit.Do(client, request)
	}
	for _, password := range []string{"", "guess"} {
		if got := ask(http.MethodGet, "/alive/upstreams", "", password, nil); got.Status != http.StatusUnauthorized || got.Body != "" {
			t.Errorf("password %q: %v", password, got)
		}
	}
	const password = "change me"
	if got := ask(http.MethodPatch, "/alive/upstreams?upstream="+all[0].Addr, `{"mode": "drain"}`, password, nil); got.Status != http.StatusOK || c.One(all[0].Addr).Mode != "drain" {
		t.Errorf("drain: %v", got)
	}
	for _, path := range []string{
		"/", "/config/", "/load", "/stop", "/metrics", "/alive", "/alive/", "/alivex", "/alive/../config/", "/alive/%2e%2e/config/", "/alive/x/..%2f..%2fconfig/",
		"/alive/%2e%2e%2fconfig/", "//alive//../config/", "/ALIVE/..%5cconfig/", "/alive/./../config/", "/alive/..;/config/",
	} {
		if got := ask(http.MethodGet, path, "", password, nil); got.Status != http.StatusNotFound || strings.Contains(got.Body, "apps") {
			t.Errorf("%s: %v, want 404", path, got)
		}
	}
	for name, header := range map[string]http.Header{
		"a script of another site": {"Origin": {"https://evil.example"}, "Sec-Fetch-Mode": {"cors"}},
		"a form of another site":   {"Origin": {"https://evil.example"}, "Sec-Fetch-Mode": {"navigate"}},
		"a browser":                {"Sec-Fetch-Mode": {"navigate"}},
	} {
		if got := ask(http.MethodPost, "/alive/check?upstream="+all[0].Addr, "", password, header); got.Status != http.StatusForbidden {
			t.Errorf("%s: %v, want 403", name, got)
		}
	}
	if got := ask(http.MethodOptions, "/alive/upstreams", "", "", http.Header{"Origin": {"https://evil.example"}, "Access-Control-Request-Method": {"PATCH"}}); got.Status != http.StatusUnauthorized {
		t.Errorf("a browser asks whether a page may send a PATCH: %v, want 401", got)
	}
	c.Load(strings.ReplaceAll(site, "header_up Host {upstream_hostport}", ""))
	if got := ask(http.MethodGet, "/alive/pools", "", password, nil); got.Status != http.StatusForbidden || !strings.Contains(got.Body, "host not allowed") {
		t.Errorf("without the line header_up: %v, want 403", got)
	}
}

// The section begins with two configs that mean the same, and its table has every option that
// Caddy has for health checks and load balancing. What it says to write instead is loaded, and
// its defaults are those of Caddy and of the tables of options.
func TestRecipeMigration_TableIsCompleteAndTrue(t *testing.T) {
	const page, section = "docs/recipes.md", "From round_robin and health checks of Caddy"
	_, tables := testkit.Documentation(t)
	table := testkit.TablesOf(t, "Caddy alone", tables)[0]
	seen := make(map[string]bool)
	for _, row := range table.Rows {
		theirs, ours := asBlock(testkit.InCode(row[0])[0]), ""
		active, isJSON := strings.CutPrefix(theirs, `"`)
		if isJSON {
			name, _, _ := strings.Cut(active, `"`)
			seen["active."+name] = true
		} else {
			for _, key := range keysOf(t, table, theirs) {
				seen[key] = true
			}
		}
		if code := testkit.InCode(row[1]); len(code) > 0 && !strings.HasPrefix(row[1], "none") {
			ours = asBlock(code[0])
		}
		line := "lb_policy alive {\n" + ours + "\n}"
		switch option, _, _ := strings.Cut(ours, " "); {
		case row[1] == "the same line":
			line = "lb_policy alive\n" + theirs
		case ours == "":
			line = "lb_policy alive\n" + theirs // it may stay
		case option == "lb_policy":
			line = ours
		case !slices.Contains([]string{"check", "max_requests", "retries", "observe", "eject"}, option):
			line = "lb_policy alive {\ncheck http / {\n" + ours + "\n}\n}"
		}
		if _, err := testkit.Validate(t, table.String(), "example.com {\nreverse_proxy app1:8080 app2:8080 {\n"+line+"\n}\n}"); err != nil {
			t.Errorf("%s: %s: %v", table, row[0], err)
		}
		option, _, _ := strings.Cut(ours, " ")
		if said, known := documentedDefault(tables, option); known && option != "observe" && said != strings.Trim(row[3], "`") {
			t.Errorf("%s: the default of %s is %s here and %s in the table of options", table, option, row[3], said)
		}
	}
	for of, kind := range map[string]reflect.Type{
		"active": reflect.TypeFor[reverseproxy.ActiveHealthChecks](), "passive": reflect.TypeFor[reverseproxy.PassiveHealthChecks](),
		"load_balancing": reflect.TypeFor[reverseproxy.LoadBalancing](),
	} {
		for field := range kind.Fields() {
			name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
			if name != "" && name != "-" && !seen[of+"."+name] {
				t.Errorf("%s has no row for %s of Caddy", table, name)
			}
		}
	}
	wantDefaults(t, table)
	before := testkit.BlocksUnder(t, page, section, "caddyfile")[0]
	if !strings.Contains(before.Text, "lb_policy round_robin") {
		t.Errorf("%s: got %s, want the config of Caddy alone", before, before.Text)
	}
}

// asBlock writes a block on one line as a Caddyfile wants it.
func asBlock(line string) string {
	return strings.NewReplacer(" { ", " {\n", " }", "\n}").Replace(line)
}

// keysOf returns the keys in JSON that an option of reverse_proxy sets.
func keysOf(t *testing.T, where fmt.Stringer, option string) (keys []string) {
	t.Helper()
	adapted, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte("http:// {\nreverse_proxy app1:8080 {\n"+option+"\n}\n}"), nil)
	if err != nil {
		t.Errorf("%s: %v", where, err)
		return nil
	}
	var config struct {
		Apps struct {
			HTTP struct {
				Servers map[string]struct {
					Routes []struct {
						Handle []struct {
							LoadBalancing map[string]any            `json:"load_balancing"`
							HealthChecks  map[string]map[string]any `json:"health_checks"`
						}
					}
				}
			}
		}
	}
	if err := json.Unmarshal(adapted, &config); err != nil {
		t.Fatal(err)
	}
	for _, server := range config.Apps.HTTP.Servers {
		handler := server.Routes[0].Handle[0]
		for key := range handler.LoadBalancing {
			keys = append(keys, "load_balancing."+key)
		}
		for kind, set := range handler.HealthChecks {
			for key := range set {
				keys = append(keys, kind+"."+key)
			}
		}
	}
	if len(keys) == 0 {
		t.Errorf("%s: %q sets nothing", where, option)
	}
	return keys
}

// documentedDefault returns the default of an option in the tables of options.
func documentedDefault(tables []testkit.Table, option string) (text string, known bool) {
	for _, table := range tables {
		if !strings.HasPrefix(table.Head[0], "option") || table.Path == "README.md" || len(table.Head) < 3 || strings.Contains(table.Head[0], "grpc") {
			continue
		}
		for _, row := range table.Rows {
			for _, name := range testkit.InCode(row[0]) {
				if name, _, _ = strings.Cut(name, " "); name == option && option != "" {
					if row[1] == "" {
						return "none", true
					}
					return strings.Trim(row[1], "`"), true
				}
			}
		}
	}
	return "", false
}

func init() { caddy.RegisterModule(handlerSpy{}) }

// handlerSpy is a policy that shows its handler to a test.
type handlerSpy struct{ reverseproxy.RandomSelection }

// spied is the handler of the newest config with a handlerSpy.
var spied atomic.Pointer[reverseproxy.Handler]

// CaddyModule returns the Caddy module information.
func (handlerSpy) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.reverse_proxy.selection_policies.test_spy", New: func() caddy.Module { return new(handlerSpy) }}
}

// Provision notes the handler.
func (handlerSpy) Provision(ctx caddy.Context) error {
	for _, module := range ctx.Modules() {
		if handler, ok := module.(*reverseproxy.Handler); ok {
			spied.Store(handler)
		}
	}
	return nil
}

// wantDefaults fails the test unless the table has the defaults of Caddy, as a handler has them
// that runs.
func wantDefaults(t *testing.T, table testkit.Table) {
	t.Helper()
	backend := testkit.StartBackend(t, "a", nil)
	testkit.StartCaddy(t, "http:// {\nreverse_proxy "+backend.Addr+" {\nlb_policy test_spy\nhealth_uri /healthz\nfail_duration 30s\nlb_try_duration 1s\n}\n}")
	handler := spied.Load()
	active := handler.HealthChecks.Active
	want := map[string]string{
		"health_interval": time.Duration(active.Interval).String(), "health_passes": fmt.Sprint(active.Passes), "health_fails": fmt.Sprint(active.Fails),
		"health_method":  "`" + active.Method + "`",
		"health_timeout": time.Duration(reflect.ValueOf(active).Elem().FieldByName("httpClient").Elem().FieldByName("Timeout").Int()).String(),
		"max_fails":      fmt.Sprint(handler.HealthChecks.Passive.MaxFails), "lb_retries": fmt.Sprint(handler.LoadBalancing.Retries),
		"lb_try_interval": time.Duration(handler.LoadBalancing.TryInterval).String() + " with `lb_try_duration`",
	}
	for _, row := range table.Rows {
		option, _, _ := strings.Cut(testkit.InCode(row[0])[0], " ")
		if value := want[option]; value != "" && row[2] != value {
			t.Errorf("%s: default of %s: got %s, want %s", table, option, row[2], value)
		}
		delete(want, option)
	}
	for option := range want {
		t.Errorf("%s: no row for %s", table, option)
	}
}
