// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/shared"
)

// nameServer is a DNS server whose answers a test changes while it runs.
type nameServer struct {
	conn net.PacketConn

	mu      sync.Mutex
	answers map[string]nameAnswer // by name
	asked   map[string]int
}

// nameAnswer is what is said about one name. Without records it is empty.
type nameAnswer struct {
	rcode dnsmessage.RCode
	a     []string // addresses
	srv   []service
}

// serviceHost is where all services are: an SRV record cannot have an address.
const serviceHost = "services.test."

// service is an SRV record.
type service struct {
	priority uint16
	port     uint16
}

// startNameServer runs one until the test ends.
func startNameServer(tb testing.TB) *nameServer {
	tb.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	n := &nameServer{conn: conn, answers: make(map[string]nameAnswer), asked: make(map[string]int)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buffer := make([]byte, 1500)
		for {
			size, from, err := conn.ReadFrom(buffer)
			if err != nil {
				return
			}
			if reply, err := n.reply(buffer[:size]); err == nil {
				_, _ = conn.WriteTo(reply, from)
			}
		}
	}()
	tb.Cleanup(func() {
		conn.Close()
		<-done
	})
	return n
}

func (n *nameServer) reply(query []byte) ([]byte, error) {
	var p dnsmessage.Parser
	header, err := p.Start(query)
	if err != nil {
		return nil, err
	}
	q, err := p.Question()
	if err != nil {
		return nil, err
	}
	name := strings.ToLower(q.Name.String())
	n.mu.Lock()
	n.asked[name]++
	answer, known := n.answers[name]
	n.mu.Unlock()
	if !known {
		answer.rcode = dnsmessage.RCodeNameError
	}

	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{
		ID: header.ID, Response: true, Authoritative: true,
		RecursionDesired: header.RecursionDesired, RecursionAvailable: true, RCode: answer.rcode,
	})
	head := dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: 1}
	errs := []error{b.StartQuestions(), b.Question(q), b.StartAnswers()}
	switch q.Type {
	case dnsmessage.TypeA:
		for _, ip := range answer.a {
			errs = append(errs, b.AResource(head, dnsmessage.AResource{A: [4]byte(net.ParseIP(ip).To4())}))
		}
	case dnsmessage.TypeSRV:
		for _, s := range answer.srv {
			errs = append(errs, b.SRVResource(head, dnsmessage.SRVResource{
				Priority: s.priority, Weight: 1, Port: s.port, Target: dnsmessage.MustNewName(serviceHost),
			}))
		}
	default: // of the others, an AAAA record for one, there is none
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return b.Finish()
}

// set changes what is said about a name from now on.
func (n *nameServer) set(name string, answer nameAnswer) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.answers[name] = answer
}

// queries returns how often a name was asked for.
func (n *nameServer) queries(name string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.asked[name]
}

// known returns when Caddy has asked for the name anew, so that every later
// request sees what is said about it now. There must be no other client.
func (n *nameServer) known(tb testing.TB, name string, client *http.Client, url string) {
	tb.Helper()
	before := n.queries(name)
	eventually(tb, patience, "Caddy asks for "+name, func() bool {
		ask(client, url)
		return n.queries(name) > before
	})
}

var names atomic.Int64

// newName returns a name that no other call did: Caddy caches what it learns of
// names for the whole process.
func newName() string { return fmt.Sprintf("app%d.test.", names.Add(1)) }

// a is the source of Caddy that asks for the addresses of a name.
func (n *nameServer) a(name string, port int) string {
	return fmt.Sprintf("a %s %d {\nresolvers %s\nrefresh 50ms\nversions ipv4\n}", name, port, n.conn.LocalAddr())
}

// startLoopbacks runs backends on 127.0.0.1, 127.0.0.2 and so on, all on one
// port, until the test ends.
func startLoopbacks(tb testing.TB, modes ...conduct) (port int, backends []*backend) {
	tb.Helper()
	if runtime.GOOS != "linux" {
		tb.Skip("127.0.0.2 and so on belong to the loopback interface on Linux only")
	}
	free := func(port int) bool {
		for i := range modes {
			stream, err := net.Listen("tcp", loopbackOf(i, port))
			if err != nil {
				return false
			}
			stream.Close()
		}
		return true
	}
	eventually(tb, patience, "a port is free on all addresses", func() bool {
		port = freePort(tb)
		return free(port)
	})
	for i, m := range modes {
		b := &backend{
			t: tb, name: string(rune('a' + i)), addr: loopbackOf(i, port),
			mode: m, changed: make(chan struct{}), probes: make(map[string]int),
		}
		if m != refusing {
			b.open()
		}
		tb.Cleanup(func() { b.set(refusing) })
		backends = append(backends, b)
	}
	return port, backends
}

func loopbackOf(i, port int) string {
	return net.JoinHostPort(fmt.Sprintf("127.0.0.%d", i+1), strconv.Itoa(port))
}

// watchedOnLists returns what is on all watch lists.
func watchedOnLists() (found []string) {
	shared.WatchLists.Range(func(_, value any) bool {
		found = append(found, value.(*watchList).addresses()...)
		return true
	})
	return found
}

// startDynamic runs Caddy with these sites until the test ends, and fails the
// test if a watch list stays behind.
func startDynamic(tb testing.TB, sites string) *instance {
	tb.Helper()
	tb.Cleanup(func() { // after Caddy stopped
		lists := 0
		shared.WatchLists.Range(func(_, _ any) bool {
			lists++
			return true
		})
		if lists > 0 {
			tb.Errorf("watch lists after Caddy stopped: got %d with %v, want none", lists, watchedOnLists())
		}
	})
	return startCaddy(tb, sites)
}

// quick is a check that notices soon.
const quick = `check http /healthz {
	interval 200ms
	fast_interval 100ms
	timeout 5s
	passes 2
	fails 2
}`

// once is a check that is not repeated while a test runs.
const once = `check http /healthz {
	interval 10m
	fast_interval 10m
	timeout 5s
}`

// dynamically is a site with upstreams from a source.
func dynamically(source, check string, more ...string) string {
	return fmt.Sprintf("http:// {\nreverse_proxy {\ndynamic %s\nlb_policy alive {\n%s\n}\n%s\n}\n}", source, check, strings.Join(more, "\n"))
}

// An address that appears in DNS is watched from then on, and gets its share
// after its first pass and not before. One that fails its checks gets nothing
// while others serve; it is skipped once it is down, and used once it is back.
func TestCaddyDynamicAppears(t *testing.T) {
	port, backends := startLoopbacks(t, well, well, sick, refusing)
	joining, dead := backends[1], backends[2]
	checked := newGate(t)
	joining.hook = func(r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/healthz") {
			checked.pass(r)
		}
	}
	n, name := startNameServer(t), newName()
	n.set(name, nameAnswer{a: []string{"127.0.0.1"}})
	c := startDynamic(t, dynamically(n.a(name, port), quick))
	client := c.plain()
	shares(t, "one address", tally(client, c.url(), 5), map[string]int{"a": 5})

	n.set(name, nameAnswer{a: []string{"127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4"}})
	n.known(t, name, client, c.url())
	eventually(t, patience, "the live one that appeared is probed", func() bool {
		_, probes := joining.seen()
		return probes > 0
	})
	eventually(t, patience, "the dead ones that appeared are down", func() bool {
		return statuses(dead.addr, backends[3].addr)[health.Down] == 2
	})
	shares(t, "before the first pass", tally(client, c.url(), 20), map[string]int{"a": 20})
	checked.open()
	eventually(t, slack, "it gets its share after its first pass", func() bool {
		return maps.Equal(tally(client, c.url(), 6), map[string]int{"a": 3, "b": 3})
	})
	if requests, _ := dead.seen(); requests != 0 {
		t.Errorf("requests to one that never passed: got %d, want 0", requests)
	}
	if got := joining.history().earlier; got < 1 {
		t.Errorf("probes before the first request of one that appeared: got %d, want 1 at least", got)
	}

	dead.set(well)
	eventually(t, patience, "the dead one gets its share once it lives", func() bool {
		return maps.Equal(tally(client, c.url(), 6), map[string]int{"a": 2, "b": 2, "c": 2})
	})
	dead.set(sick)
	eventually(t, patience, "it is down again", func() bool { return is(health.Down, dead.addr) })
	shares(t, "down again", tally(client, c.url(), 6), map[string]int{"a": 3, "b": 3})
	dead.set(well)
	eventually(t, patience, "and back again", func() bool {
		return maps.Equal(tally(client, c.url(), 6), map[string]int{"a": 2, "b": 2, "c": 2})
	})
	if got := dead.history().earlier; got < 2 {
		t.Errorf("probes before the first request of one that came back: got %d, want `passes`, 2, at least", got)
	}
}

// At a cold start the first request waits for verdicts, and none reaches one
// that is dead. An address that left DNS gets no more requests.
func TestCaddyDynamicLeaves(t *testing.T) {
	port, backends := startLoopbacks(t, well, sick, well)
	n, name := startNameServer(t), newName()
	all := []string{"127.0.0.1", "127.0.0.2", "127.0.0.3"}
	n.set(name, nameAnswer{a: all})
	c := startDynamic(t, dynamically(n.a(name, port), quick))
	client := c.plain()
	eventually(t, patience, "both that live take turns", func() bool {
		return maps.Equal(tally(client, c.url(), 6), map[string]int{"a": 3, "c": 3})
	})
	if requests, _ := backends[1].seen(); requests != 0 {
		t.Errorf("requests to a dead one from the start on: got %d, want 0", requests)
	}

	n.set(name, nameAnswer{a: all[:1]})
	n.known(t, name, client, c.url())
	before, _ := backends[2].seen()
	shares(t, "one left", tally(client, c.url(), 20), map[string]int{"a": 20})
	if after, _ := backends[2].seen(); after != before {
		t.Errorf("requests to one that left: got %d, want 0", after-before)
	}
	n.set(name, nameAnswer{a: all})
	n.known(t, name, client, c.url())
	shares(t, "it returned within five minutes, still watched", tally(client, c.url(), 6), map[string]int{"a": 3, "c": 3})
}

// Caddy's own rules: when the source fails, the static upstreams serve, or it
// answers 503 without any; when the source has nobody, it answers 503.
func TestCaddyDynamicNothing(t *testing.T) {
	port, _ := startLoopbacks(t, well)
	static := startBackend(t, "static", nil)
	n, name := startNameServer(t), newName()
	source := n.a(name, port)
	site := func(host, upstreams, source string) string {
		return fmt.Sprintf("http://%s {\nreverse_proxy %s {\ndynamic %s\nlb_policy alive {\n%s\n}\n}\n}\n", host, upstreams, source, quick)
	}
	n.set(name, nameAnswer{a: []string{"127.0.0.1"}})
	c := startDynamic(t, site("fallback.test", static.addr, source)+site("alone.test", "", source)+
		site("multi.test", static.addr, "multi {\n"+source+"\n}"))
	client := c.plain()
	expect := func(what, fallback, alone, multi string) {
		t.Helper()
		for host, want := range map[string]string{"fallback.test": fallback, "alone.test": alone, "multi.test": multi} {
			eventually(t, patience, fmt.Sprintf("%s: %s answers %s", what, host, want), func() bool {
				a := askHost(client, c.url(), host, nil)
				got := strconv.Itoa(a.status)
				if a.status == http.StatusOK {
					got = a.body
				}
				return got == want
			})
		}
	}
	one := nameAnswer{a: []string{"127.0.0.1"}}
	expect("an address", "a", "a", "a")
	for _, nothing := range []struct {
		what   string
		answer nameAnswer
	}{
		{"NXDOMAIN", nameAnswer{rcode: dnsmessage.RCodeNameError}},
		{"SERVFAIL", nameAnswer{rcode: dnsmessage.RCodeServerFailure}},
		{"an empty answer", nameAnswer{}},
	} {
		n.set(name, nothing.answer)
		expect(nothing.what, "static", "503", "503")
		n.set(name, one)
		expect("after "+nothing.what, "a", "a", "a")
	}
}

// An address that a source has twice counts twice, but is probed once.
func TestCaddyDynamicSRV(t *testing.T) {
	backends := startBackends(t, "a", "b", "dead")
	backends[2].set(sick)
	var ports []uint16
	var dials []string
	for _, b := range backends {
		_, port, _ := net.SplitHostPort(b.addr)
		number, _ := strconv.ParseUint(port, 10, 16)
		ports = append(ports, uint16(number))
		dials = append(dials, serviceHost+":"+port)
	}
	n, name := startNameServer(t), newName()
	n.set(serviceHost, nameAnswer{a: []string{"127.0.0.1"}})
	// different priorities, for those of one are shuffled
	n.set(name, nameAnswer{srv: []service{{1, ports[0]}, {2, ports[1]}, {3, ports[0]}, {4, ports[2]}}})
	c := startDynamic(t, dynamically(fmt.Sprintf("srv %s {\nresolvers %s\nrefresh 50ms\n}", name, n.conn.LocalAddr()), once,
		fmt.Sprintf("transport http {\nresolvers %s\n}", n.conn.LocalAddr())))
	client := c.plain()
	eventually(t, patience, "all are settled, and take turns", func() bool {
		return maps.Equal(tally(client, c.url(), 6), map[string]int{"a": 4, "b": 2})
	})
	eventually(t, patience, "the dead one is down", func() bool { return is(health.Down, dials[2]) })
	for i, b := range backends {
		requests, probes := b.seen()
		if probes != 1 {
			t.Errorf("probes of %s: got %d, want 1", b.name, probes)
		}
		if i == 2 && requests != 0 {
			t.Errorf("requests to the dead one: got %d, want 0", requests)
		}
	}
}

// `dynamic multi` is one pool of all its sources, and one that fails leaves the
// others alone.
func TestCaddyDynamicMulti(t *testing.T) {
	port, backends := startLoopbacks(t, well, well, sick)
	n, first, second := startNameServer(t), newName(), newName()
	n.set(first, nameAnswer{a: []string{"127.0.0.1"}})
	n.set(second, nameAnswer{a: []string{"127.0.0.2", "127.0.0.3"}})
	c := startDynamic(t, dynamically("multi {\n"+n.a(first, port)+"\n"+n.a(second, port)+"\n}", quick))
	client := c.plain()
	eventually(t, patience, "those of both that live take turns", func() bool {
		return maps.Equal(tally(client, c.url(), 6), map[string]int{"a": 3, "b": 3})
	})
	n.set(first, nameAnswer{rcode: dnsmessage.RCodeServerFailure})
	n.known(t, first, client, c.url())
	shares(t, "the first fails", tally(client, c.url(), 6), map[string]int{"b": 6})
	if requests, _ := backends[2].seen(); requests != 0 {
		t.Errorf("requests to the dead one: got %d, want 0", requests)
	}
}

// A reload in traffic forgets nothing: an address known to be dead gets no
// request, and the watch list goes on, even before the first request.
func TestCaddyDynamicReload(t *testing.T) {
	port, backends := startLoopbacks(t, well, hanging, well)
	dead := backends[1]
	n, name := startNameServer(t), newName()
	n.set(name, nameAnswer{a: []string{"127.0.0.1", "127.0.0.2", "127.0.0.3"}})
	sites := func(version int) string {
		return fmt.Sprintf("http:// {\nheader Version %d\n", version) +
			strings.TrimPrefix(dynamically(n.a(name, port), `check http /healthz {
	interval 10m
	fast_interval 300ms
	timeout 300ms
}`), "http:// {\n")
	}
	c := startDynamic(t, sites(0))
	client := c.plain()
	eventually(t, patience, "the dead one is down, the others take turns", func() bool {
		return maps.Equal(tally(client, c.url(), 6), map[string]int{"a": 3, "c": 3}) && is(health.Down, dead.addr)
	})
	before, _ := dead.seen()

	clients := startTraffic(t, 4, func() answer {
		a := ask(client, c.url())
		if a.status == 0 { // Caddy may drop a new connection at a reload
			a = ask(client, c.url())
		}
		return a
	})
	probing := c.plain()
	for version := 1; version <= 5; version++ {
		c.reloadInTraffic(sites(version), version, probing, clients)
	}
	clients.stop()
	if err := clients.err(); err != nil {
		t.Errorf("of %d requests: %v", clients.answered(), err)
	}

	// without any request
	for version := 6; version <= 7; version++ {
		c.load(sites(version))
		want := []string{backends[0].addr, dead.addr, backends[2].addr}
		if got := watchedOnLists(); !slices.Equal(got, want) {
			t.Errorf("watched after a reload without a request: got %v, want %v", got, want)
		}
		_, probed := dead.seen()
		eventually(t, patience, "the dead one is still probed", func() bool {
			_, probes := dead.seen()
			return probes > probed+1
		})
	}
	shares(t, "after the reloads", tally(client, c.url(), 6), map[string]int{"a": 3, "c": 3})
	if after, _ := dead.seen(); after != before {
		t.Errorf("requests to an address known to be dead: got %d, want 0", after-before)
	}
	for _, b := range []*backend{backends[0], backends[2]} {
		if _, probes := b.seen(); probes != 1 {
			t.Errorf("probes of %s over all reloads: got %d, want the first one only", b.name, probes)
		}
	}

	// a config that fails to load changes nothing
	if err := c.tryLoad(sites(8) + "http://broken.test {\nreverse_proxy 127.0.0.1:1-3000 {\nlb_policy alive {\nweight nobody:1 2\n}\n}\n}\n"); err == nil {
		t.Error("a config with the weight of an unknown upstream was loaded")
	}
	if got := watchedOnLists(); len(got) != 3 {
		t.Errorf("watched after a reload that failed: got %v, want 3", got)
	}
	shares(t, "after a reload that failed", tally(client, c.url(), 6), map[string]int{"a": 3, "c": 3})
}

// A request that is tried again goes to an address that it has not tried: two
// retries find the third for every request.
func TestCaddyDynamicRetries(t *testing.T) {
	port, backends := startLoopbacks(t, resetting, resetting, well)
	n, name := startNameServer(t), newName()
	n.set(name, nameAnswer{a: []string{"127.0.0.1", "127.0.0.2", "127.0.0.3"}})
	c := startDynamic(t, dynamically(n.a(name, port), "check tcp", "lb_retries 2"))
	client := c.plain()
	eventually(t, patience, "all pass their checks", func() bool {
		ask(client, c.url())
		return statuses(backends[0].addr, backends[1].addr, backends[2].addr)[health.Up] == 3
	})
	count := hammer(client, c.url(), 8, 1000)
	if want := map[int]int64{http.StatusOK: 1000}; !maps.Equal(count, want) {
		t.Errorf("answers by status (-1: none): got %v, want %v", count, want)
	}
}

func init() { caddy.RegisterModule(testSource{}) }

// testSource is a source of upstreams that a test decides on.
type testSource struct {
	ID string `json:"id,omitempty"`

	handler *reverseproxy.Handler
}

// CaddyModule returns the Caddy module information.
func (testSource) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.reverse_proxy.upstreams.alive_test_source",
		New: func() caddy.Module { return new(testSource) },
	}
}

func (s *testSource) Provision(ctx caddy.Context) error {
	for _, m := range ctx.Modules() {
		if h, ok := m.(*reverseproxy.Handler); ok {
			s.handler = h
		}
	}
	return nil
}

func (s *testSource) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	if !d.Args(&s.ID) {
		return d.ArgErr()
	}
	return nil
}

func (s *testSource) GetUpstreams(r *http.Request) ([]*reverseproxy.Upstream, error) {
	v, ok := sources.Load(s.ID)
	if !ok {
		return nil, fmt.Errorf("no source %s", s.ID)
	}
	of := v.(*source)
	if selection, ok := s.handler.LoadBalancing.SelectionPolicy.(*Selection); ok {
		of.selection.Store(selection)
	}
	dials, err := (*of.answer.Load())(r)
	return pool(dials...), err
}

// sources has the source of every ID.
var sources sync.Map

// source decides what a testSource answers.
type source struct {
	id        string
	answer    atomic.Pointer[func(*http.Request) ([]string, error)]
	selection atomic.Pointer[Selection] // of the last request
}

// newSource returns a source that answers with these addresses until it is told
// otherwise.
func newSource(tb testing.TB, dials ...string) *source {
	tb.Helper()
	s := &source{id: fmt.Sprintf("source%d", names.Add(1))}
	s.set(dials...)
	sources.Store(s.id, s)
	tb.Cleanup(func() { sources.Delete(s.id) })
	return s
}

func (s *source) set(dials ...string) {
	s.by(func(*http.Request) ([]string, error) { return dials, nil })
}

func (s *source) by(answer func(*http.Request) ([]string, error)) { s.answer.Store(&answer) }

func (s *source) name() string { return "alive_test_source " + s.id }

// pool makes new upstreams, as sources do for every request. Nil stays nil.
func pool(dials ...string) []*reverseproxy.Upstream {
	if dials == nil {
		return nil
	}
	upstreams := make([]*reverseproxy.Upstream, 0, len(dials))
	for _, dial := range dials {
		upstreams = append(upstreams, &reverseproxy.Upstream{Dial: dial})
	}
	return upstreams
}

// logged counts the lines of Caddy's log that have a text.
func (c *instance) logged(text string) int {
	c.t.Helper()
	log, err := os.ReadFile(c.logFile())
	if err != nil {
		c.t.Fatal(err)
	}
	return bytes.Count(log, []byte(text))
}

// Whatever a source answers, Caddy's own rules hold and nothing crashes.
func TestCaddyDynamicOddAnswers(t *testing.T) {
	backends := startBackends(t, "a", "b", "static")
	a, b := backends[0].addr, backends[1].addr
	s := newSource(t)
	c := startDynamic(t, fmt.Sprintf("http:// {\nreverse_proxy %s {\ndynamic %s\nlb_policy alive {\n%s\n}\n}\n}", backends[2].addr, s.name(), once))
	client := c.plain()
	eventually(t, patience, "the static one is up", func() bool { return is(health.Up, backends[2].addr) })

	if got := ask(client, c.url()); got.status != http.StatusServiceUnavailable {
		t.Errorf("no upstreams: got %v, want 503", got)
	}
	s.set([]string{}...)
	if got := ask(client, c.url()); got.status != http.StatusServiceUnavailable {
		t.Errorf("an empty list: got %v, want 503", got)
	}
	s.by(func(*http.Request) ([]string, error) { return []string{a}, errors.New("by test") })
	shares(t, "an error", tally(client, c.url(), 4), map[string]int{"static": 4})
	s.set(a, backends[2].addr)
	// the only one known to be up, unless the machine was so busy that the first probe passed
	if got := ask(client, c.url()); got.body != "static" && (got.body != "a" || !is(health.Up, a)) {
		t.Errorf("one that is static, too: got %v, want the only one known to be up", got)
	}
	eventually(t, patience, "both are up", func() bool { return is(health.Up, a) })
	shares(t, "one that is static, too", tally(client, c.url(), 6), map[string]int{"a": 3, "static": 3})
	s.set(a, a, b, a)
	eventually(t, patience, "duplicates count each", func() bool {
		return maps.Equal(tally(client, c.url(), 8), map[string]int{"a": 6, "b": 2})
	})
	for _, backend := range backends {
		if _, probes := backend.seen(); probes != 1 {
			t.Errorf("probes of %s: got %d, want 1", backend.name, probes)
		}
	}

	// An address that cannot be checked counts as alive, and it is Caddy itself
	// that cannot use it. The others get their share all the same.
	for _, invalid := range []string{"", "127.0.0.1:1-3", "127.0.0.1:99999"} {
		s.set(a, invalid, b)
		shares(t, fmt.Sprintf("with the address %q", invalid), tally(client, c.url(), 6), map[string]int{"a": 2, "b": 2, "error": 2})
		s.set(invalid)
		if got := ask(client, c.url()); got.err != nil || got.status != http.StatusBadGateway {
			t.Errorf("nothing but the address %q: got %v, want 502", invalid, got)
		}
	}
	// One that Caddy takes for the name of a host is checked, and so known to be
	// of no use.
	for _, unusable := range []string{"x:y:z", "bad/127.0.0.1:80", "\x00"} {
		s.set(a, unusable, b)
		shares(t, fmt.Sprintf("with the address %q", unusable), tally(client, c.url(), 6), map[string]int{"a": 3, "b": 3})
		s.set(unusable)
		if got := ask(client, c.url()); got.err != nil || got.status != http.StatusBadGateway {
			t.Errorf("nothing but the address %q: got %v, want 502", unusable, got)
		}
	}

	// One with placeholders of the request is not checked, and always serves; a
	// single warning says so. Where they are known beforehand, it is checked.
	t.Setenv("ALIVE_TEST_UPSTREAM", b)
	s.set("{http.request.header.To}", a, "{env.ALIVE_TEST_UPSTREAM}")
	got := make(map[string]int)
	for range 6 {
		got[askHost(client, c.url(), "", http.Header{"To": {b}}).body]++
	}
	shares(t, "with placeholders", got, map[string]int{"a": 2, "b": 4})
	s.set("{http.request.header.To}", "{http.request.header.Too}")
	if got := askHost(client, c.url(), "", http.Header{"To": {a}, "Too": {a}}); got.body != "a" {
		t.Errorf("with placeholders only: got %v, want an answer of a", got)
	}
	if got := c.logged("upstream cannot be checked"); got != 1 {
		t.Errorf("warnings of upstreams that cannot be checked: got %d, want 1", got)
	}
	if _, probes := backends[1].seen(); probes != 1 {
		t.Errorf("probes of b, which a placeholder of the environment names, too: got %d, want 1", probes)
	}
}

// loopbacks are that many addresses that refuse connections, on Linux at once.
func loopbacks(port, n int) []string {
	dials := make([]string, n)
	for i := range dials {
		dials[i] = fmt.Sprintf("127.%d.%d.%d:%d", 1+i/65536, i/256%256, i%256, port)
	}
	return dials
}

// A policy watches at most 1,024 addresses of a source, says so once, and goes
// on with a pool of any size.
func TestCaddyDynamicHuge(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("127.0.0.2 and so on belong to the loopback interface on Linux only")
	}
	size := 100_000
	if raceDetector {
		size /= 5
	}
	huge := loopbacks(freePort(t), size)
	s := newSource(t, huge...)
	c := startDynamic(t, dynamically(s.name(), "check tcp {\ninterval 10m\n}"))
	client := c.plain()
	for range 3 { // those that are not checked count as alive
		if got := ask(client, c.url()); got.status != http.StatusBadGateway {
			t.Fatalf("an upstream that refuses: got %v, want 502", got)
		}
	}
	if got := len(watched()); got != maxDynamic {
		t.Errorf("targets: got %d, want %d", got, maxDynamic)
	}
	if got := len(watchedOnLists()); got != maxDynamic {
		t.Errorf("watched: got %d, want %d", got, maxDynamic)
	}
	eventually(t, patience, "all that are checked are down", func() bool {
		return statuses(huge[:maxDynamic]...)[health.Down] == maxDynamic
	})

	policy := s.selection.Load()
	hosted := brought(huge...)
	memory := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	r := get()
	var picks []time.Duration
	for range 9 {
		began := time.Now()
		u := policy.Select(hosted, r, nil)
		picks = append(picks, time.Since(began))
		if u == nil {
			t.Fatal("nil while many count as alive")
		}
		if i := slices.Index(hosted, u); i < maxDynamic {
			t.Errorf("picked %s, which is down", u.Dial)
		}
	}
	slices.Sort(picks)
	before := memory()
	began := time.Now()
	const others = maxPools + 4 // more than are kept ready
	for i := range others {
		hosted = append(hosted[i+1:], hosted[:i+1]...)
		if policy.Select(hosted, r, nil) == nil {
			t.Fatal("nil while many count as alive")
		}
	}
	each := time.Since(began) / others
	grown := int64(memory()) - int64(before)
	t.Logf("pool of %d: a pick takes %s (median), %s at most; another order of it takes %s; %d other orders take %d MiB",
		size, picks[len(picks)/2], picks[len(picks)-1], each, others, grown>>20)
	if most := 2 * time.Second; picks[len(picks)/2] > most || each > most {
		t.Errorf("a pick takes longer than %s", most)
	}
	if most := int64(512 << 20); grown > most {
		t.Errorf("memory for pools that are kept ready: got %d MiB, want %d MiB at most", grown>>20, most>>20)
	}
	if got := len(watched()); got != maxDynamic {
		t.Errorf("targets after all: got %d, want %d", got, maxDynamic)
	}
	if got := c.logged("too many upstreams from a dynamic source"); got != 1 {
		t.Errorf("warnings of too many: got %d, want 1", got)
	}
}

// A name that depends on the request cannot make the watch list grow without
// bound, whoever asks for it at the same time, across reloads and at the end.
func TestCaddyDynamicPerRequest(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("127.0.0.2 and so on belong to the loopback interface on Linux only")
	}
	dials := loopbacks(freePort(t), 1<<16)
	s := newSource(t)
	var next atomic.Int64
	s.by(func(*http.Request) ([]string, error) {
		i := next.Add(1) % int64(len(dials))
		return dials[i : i+1], nil
	})
	sites := dynamically(s.name(), "check tcp {\ninterval 10m\nfast_interval 10m\n}")
	c := startDynamic(t, sites)
	client := c.plain()
	count := hammer(client, c.url(), 16, 1500)
	if want := map[int]int64{http.StatusBadGateway: 1500}; !maps.Equal(count, want) {
		t.Errorf("answers by status (-1: none): got %v, want %v", count, want)
	}
	if got := len(watched()); got != maxDynamic {
		t.Errorf("targets after 1500 addresses: got %d, want %d", got, maxDynamic)
	}
	if got := c.logged("too many upstreams from a dynamic source"); got != 1 {
		t.Errorf("warnings of too many: got %d, want 1", got)
	}

	// requests go on while configs come and go, and Caddy stops
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			for ctx.Err() == nil {
				ask(client, c.url())
			}
		})
	}
	for range 3 {
		asked := next.Load()
		c.load(sites)
		eventually(t, patience, "requests go on", func() bool { return next.Load() > asked+20 })
		if got := len(watched()); got > 2*maxDynamic { // of two configs, for a moment
			t.Errorf("targets after a reload: got %d, want %d at most", got, 2*maxDynamic)
		}
	}
	eventually(t, patience, "only the watch list of one config is left", func() bool { return len(watched()) == maxDynamic })
	c.stop()
	cancel()
	clients.Wait()
}

// When Caddy stops while sources still bring new addresses, nothing stays
// behind, probes that hang included.
func TestCaddyDynamicStop(t *testing.T) {
	port, backends := startLoopbacks(t, well, hanging)
	s := newSource(t)
	var next atomic.Int64
	s.by(func(*http.Request) ([]string, error) {
		return []string{backends[0].addr, backends[1].addr, fmt.Sprintf("127.9.0.%d:%d", next.Add(1)%256, port)}, nil
	})
	c := startDynamic(t, dynamically(s.name(), quick))
	client := c.plain()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var clients sync.WaitGroup
	for range 8 {
		clients.Go(func() {
			for ctx.Err() == nil {
				ask(client, c.url())
			}
		})
	}
	eventually(t, patience, "new addresses keep coming", func() bool { return next.Load() > 20 })
	c.stop() // fails the test if anything is left
	cancel()
	clients.Wait()
	if got := watchedOnLists(); len(got) > 0 {
		t.Errorf("watched after Caddy stopped: got %v, want nothing", got)
	}
}

// A source that answers differently for every request has nothing probed twice.
func TestCaddyDynamicAlternates(t *testing.T) {
	backends := startBackends(t, "a", "b", "c", "dead")
	dead := backends[3]
	dead.set(sick)
	s := newSource(t)
	s.by(func(*http.Request) ([]string, error) { // up to 64 different answers, most in other orders
		var dials []string
		for _, i := range rand.Perm(4)[:2+rand.IntN(3)] {
			dials = append(dials, backends[i].addr)
		}
		return dials, nil
	})
	c := startDynamic(t, dynamically(s.name(), once, "lb_retries 1"))
	client := c.plain()
	eventually(t, patience, "all are known", func() bool {
		ask(client, c.url())
		return is(health.Down, dead.addr) && statuses(backends[0].addr, backends[1].addr, backends[2].addr)[health.Up] == 3
	})
	before, _ := dead.seen()
	count := hammer(client, c.url(), 8, 1000)
	if want := map[int]int64{http.StatusOK: 1000}; !maps.Equal(count, want) {
		t.Errorf("answers by status (-1: none): got %v, want %v", count, want)
	}
	if after, _ := dead.seen(); after != before {
		t.Errorf("requests to one that is down: got %d, want 0", after-before)
	}
	for _, b := range backends {
		if _, probes := b.seen(); probes != 1 {
			t.Errorf("probes of %s: got %d, want 1", b.name, probes)
		}
	}
}

// A change is logged once, however many answers a source has: that nobody is
// alive in a pool is no news at every request.
func TestCaddyDynamicLogsOnce(t *testing.T) {
	const pools, rounds = maxPools + 4, 10
	var dials []string
	for range pools {
		dials = append(dials, refused(t))
	}
	s := newSource(t)
	s.by(func(r *http.Request) ([]string, error) {
		i, _ := strconv.Atoi(strings.TrimPrefix(r.URL.Path, "/"))
		return dials[i : i+1], nil
	})
	c := startDynamic(t, dynamically(s.name(), "check tcp {\ninterval 10m\nfast_interval 10m\n}"))
	client := c.plain()
	for range rounds {
		for i := range pools {
			if got := ask(client, c.url()+"/"+strconv.Itoa(i)); got.status != http.StatusBadGateway {
				t.Fatalf("as the last resort: got %v, want 502", got)
			}
		}
	}
	if got := c.logged("no upstream is alive"); got > pools {
		t.Errorf("lines of the log that say that nobody is alive, for %d pools that never changed, over %d requests: got %d, want %d at most",
			pools, pools*rounds, got, pools)
	}
}

// An address that requests no longer bring is forgotten, with its Mode: its probes
// end.
func TestCaddyDynamicForgets(t *testing.T) {
	backends := startBackends(t, "stays", "leaves")
	s := newSource(t, backends[0].addr, backends[1].addr)
	c := startDynamic(t, dynamically(s.name(), quick))
	client := c.plain()
	eventually(t, patience, "both take turns", func() bool {
		return maps.Equal(tally(client, c.url(), 4), map[string]int{"stays": 2, "leaves": 2})
	})
	s.set(backends[0].addr)
	ask(client, c.url())
	d := s.selection.Load().dynamic
	operations := s.selection.Load().app.operations
	drain := settings.Mode(settings.Drain)
	for _, b := range backends {
		operations.Change(b.addr, settings.Change{Mode: &drain})
	}
	ago := func(by time.Duration) { // as if all were that much longer ago
		d.mu.Lock()
		defer d.mu.Unlock()
		for _, p := range *d.pools.Load() {
			p.last.Add(-int64(by))
			p.set.last.Add(-int64(by))
		}
		for _, s := range d.sightings {
			s.last -= by
			if s.missing != 0 {
				s.missing -= by
			}
		}
		d.lastUse, d.lastSweep = d.lastUse-by, d.lastSweep-by
	}
	for minute := range 7 {
		if got := len(watchedOnLists()); minute < 5 && got != 2 {
			t.Fatalf("watched after %d minutes: got %d, want 2", minute, got)
		}
		ago(time.Minute)
		ask(client, c.url())
		d.sweep(elapsed(time.Now()))
	}
	if got, want := watchedOnLists(), []string{backends[0].addr}; !slices.Equal(got, want) {
		t.Errorf("watched after 7 minutes: got %v, want %v", got, want)
	}
	if got := len(watched()); got != 1 {
		t.Errorf("targets after 7 minutes: got %d, want 1", got)
	}
	if stays, leaves := operations.Of(backends[0].addr).ModeNow(), operations.Of(backends[1].addr).ModeNow(); stays != settings.Drain || leaves != settings.Ready {
		t.Errorf("modes after 7 minutes: %s and %s, want drain and ready", stays, leaves)
	}
	_, ended := backends[1].seen()
	_, probed := backends[0].seen()
	eventually(t, patience, "the one that stays is still probed", func() bool {
		_, probes := backends[0].seen()
		return probes > probed+2
	})
	if _, probes := backends[1].seen(); probes != ended {
		t.Errorf("probes of one that was forgotten: got %d, want 0", probes-ended)
	}
}

// virtually waits on the clock of a synctest bubble.
func virtually(d time.Duration) { <-time.After(d) }

// What an earlier config watched is forgotten, too, when the pool has been idle
// for an hour, if no request came at all since the reload.
func TestCaddyDynamicForgetsWhatItResumed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPolicy(t, "")
		d := p.dynamic
		d.list.add("10.9.9.9:80") // by the earlier config
		d.resume()
		d.list.remove("10.9.9.9:80")
		virtually(2 * idleFor)
		if got := d.list.addresses(); len(got) > 0 {
			t.Errorf("watched after %s without a request: got %v, want nothing", 2*idleFor, got)
		}
		p.unload()
		d.close()
	})
}

// What an earlier config watched is forgotten only when requests have seen the
// pool without it for five minutes, be the first of them late.
func TestCaddyDynamicKeepsWhatItResumed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPolicy(t, "")
		d := p.dynamic
		d.list.add("10.9.9.9:80") // by the earlier config
		d.resume()
		d.list.remove("10.9.9.9:80")
		virtually(40 * time.Minute) // less than an hour
		p.Select(brought("10.0.0.1:80"), get(), nil)
		virtually(2 * sweepInterval)
		if got, want := d.list.addresses(), []string{"10.0.0.1:80", "10.9.9.9:80"}; !slices.Equal(got, want) {
			t.Errorf("watched a minute after the first request without one: got %v, want %v", got, want)
		}
		p.unload()
		d.close()
	})
}

// BenchmarkDynamicPick puts the policy beside Caddy's round_robin over pools
// that are new values for every pick. Only their ratio means anything.
func BenchmarkDynamicPick(b *testing.B) {
	const values = 64 // of one answer
	for _, size := range []int{10, 100, 1000} {
		for _, answers := range []int{1, 8, 2 * maxPools} {
			var pools []reverseproxy.UpstreamPool
			for i := range values {
				var dials []string
				for j := range size {
					dials = append(dials, address(i%answers*7+j))
				}
				pools = append(pools, brought(dials...))
			}
			for _, policy := range []struct {
				name string
				reverseproxy.Selector
			}{
				{"alive", newPolicy(b, "").Selection},
				{"round_robin", new(reverseproxy.RoundRobinSelection)},
			} {
				b.Run(fmt.Sprintf("%d/%d_pools/%s", size, answers, policy.name), func(b *testing.B) {
					r := get()
					for _, pool := range pools { // as they are after the first requests
						policy.Select(pool, r, nil)
					}
					b.ReportAllocs()
					i := 0
					for b.Loop() {
						i++
						if policy.Select(pools[i%values], r, nil) == nil {
							b.Fatal("nil")
						}
					}
				})
			}
		}
	}
}
