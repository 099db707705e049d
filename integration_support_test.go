// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/shared"
)

const (
	// patience is how long a test waits for what has to happen sometime. It is
	// only spent where something is broken.
	patience = 30 * time.Second
	// slack is what a busy machine may add to a time that is promised.
	slack = 2 * time.Second
)

// eventually fails the test unless cond comes true in time.
func eventually(tb testing.TB, within time.Duration, what string, cond func() bool) {
	tb.Helper()
	if !poll(within, cond) {
		tb.Fatalf("not within %s: %s", within, what)
	}
}

// poll reports whether cond comes true in time.
func poll(within time.Duration, cond func() bool) bool {
	deadline := time.NewTimer(within)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline.C:
			return cond()
		}
	}
	return true
}

// stays fails the test unless cond holds for the whole time.
func stays(tb testing.TB, during time.Duration, what string, cond func() bool) {
	tb.Helper()
	end := time.NewTimer(during)
	defer end.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if !cond() {
			tb.Fatalf("no longer true: %s", what)
		}
		select {
		case <-tick.C:
		case <-end.C:
			return
		}
	}
}

var ports struct {
	sync.Mutex
	taken map[int]bool
}

// freePort returns a port of the loopback address that nobody listens on and
// that no other call returned. It is below those that systems hand out by
// themselves, so that it stays free until the test uses it.
func freePort(tb testing.TB) int {
	tb.Helper()
	ports.Lock()
	defer ports.Unlock()
	if ports.taken == nil {
		ports.taken = make(map[int]bool)
	}
	for range 1000 {
		port := 20000 + mathrand.IntN(12000)
		if ports.taken[port] {
			continue
		}
		ports.taken[port] = true
		address := loopback(port)
		stream, err := net.Listen("tcp", address)
		if err != nil {
			continue
		}
		stream.Close()
		packets, err := net.ListenPacket("udp", address)
		if err != nil {
			continue
		}
		packets.Close()
		return port
	}
	tb.Fatal("no free port found")
	return 0
}

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// refused returns an address that refuses connections.
func refused(tb testing.TB) string {
	tb.Helper()
	return loopback(freePort(tb))
}

// instance is Caddy inside the test process. There can be but one at a time,
// so tests that have one are not parallel.
type instance struct {
	t                   testing.TB
	dir                 string
	httpPort, httpsPort int
	admin               string // the address of the admin API, "off" for none
	global              string // further global options
	loaded              bool
}

// startCaddy runs Caddy with these sites of a Caddyfile until the test ends.
// Sites on `http://` and `https://localhost` are reached by the instance's
// clients.
func startCaddy(tb testing.TB, sites string) *instance {
	tb.Helper()
	return startInstance(tb, instance{admin: "off"}, sites)
}

// startOperated is startCaddy with an admin API and further global options.
func startOperated(tb testing.TB, global, sites string) *instance {
	tb.Helper()
	return startInstance(tb, instance{admin: loopback(freePort(tb)), global: global}, sites)
}

func startInstance(tb testing.TB, with instance, sites string) *instance {
	tb.Helper()
	var found []string // what an earlier test has just ended may take a moment
	if !poll(patience, func() bool { found = leftovers(); return len(found) == 0 }) {
		tb.Fatalf("there before Caddy started: %s", strings.Join(found, "\n"))
	}
	c := &with
	c.t, c.dir, c.httpPort, c.httpsPort = tb, tb.TempDir(), freePort(tb), freePort(tb)
	tb.Cleanup(func() {
		c.stop()
		if tb.Failed() {
			c.showLog()
		}
	})
	c.load(sites)
	return c
}

// load loads the sites, in place of those loaded before.
func (c *instance) load(sites string) {
	c.t.Helper()
	if err := c.tryLoad(sites); err != nil {
		c.t.Fatal(err)
	}
}

// reloadInTraffic loads sites that say their version in a header, and returns when
// that version answers and the clients had answers of it.
func (c *instance) reloadInTraffic(sites string, version int, probing *http.Client, clients *traffic) {
	c.t.Helper()
	answered := clients.answered()
	c.load(sites)
	eventually(c.t, patience, "the new config serves", func() bool {
		return ask(probing, c.url()).header.Get("Version") == strconv.Itoa(version)
	})
	eventually(c.t, patience, "traffic goes on", func() bool { return clients.answered() > answered+50 })
}

func (c *instance) tryLoad(sites string) error {
	text := fmt.Sprintf(`{
	admin %s
	%s
	persist_config off
	storage file_system {
		root %s
	}
	skip_install_trust
	local_certs
	auto_https disable_redirects
	http_port %d
	https_port %d
	default_bind 127.0.0.1
	grace_period 1s
	log {
		output file %s {
			roll_disabled
		}
		level INFO
	}
}
%s
`, c.admin, c.global, "`"+c.dir+"`", c.httpPort, c.httpsPort, "`"+c.logFile()+"`", sites)
	config, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(text), map[string]any{"filename": "Caddyfile"})
	if err != nil {
		return fmt.Errorf("adapting:\n%s\n%v", text, err)
	}
	c.loaded = true
	if err := caddy.Load(config, true); err != nil {
		return fmt.Errorf("loading:\n%s\n%v", text, err)
	}
	c.awaitOneListener()
	return nil
}

// awaitOneListener waits until the listeners of the config before are closed. Caddy does
// not wait for that, and on Linux each config has a socket of its own: connections that
// wait to be accepted by the old one are reset, or served by the old config.
func (c *instance) awaitOneListener() {
	c.t.Helper()
	ports := []int{c.httpPort, c.httpsPort}
	if _, text, err := net.SplitHostPort(c.admin); err == nil {
		port, _ := strconv.Atoi(text)
		ports = append(ports, port)
	}
	for _, port := range ports {
		if !poll(patience, func() bool { return listeners(port) <= 1 }) {
			c.t.Fatalf("the port %d still has %d listeners", port, listeners(port))
		}
	}
}

// listeners counts the TCP sockets that listen on a port, as far as Linux tells.
func listeners(port int) (n int) {
	text, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		// the local address and the state are the second and fourth field of a line
		if fields := strings.Fields(line); len(fields) > 3 && fields[3] == "0A" && strings.HasSuffix(fields[1], fmt.Sprintf(":%04X", port)) {
			n++
		}
	}
	return n
}

// stop stops Caddy, and fails the test if anything of this project stays
// behind: a probe that runs on, a target that nobody watches.
func (c *instance) stop() {
	c.t.Helper()
	if !c.loaded {
		return
	}
	c.loaded = false
	if err := caddy.Stop(); err != nil {
		c.t.Errorf("stopping Caddy: %v", err)
	}
	var leaks []string
	poll(patience, func() bool {
		leaks = leftovers()
		return len(leaks) == 0
	})
	for _, leak := range leaks {
		c.t.Errorf("left behind after Caddy stopped: %s", leak)
	}
}

func (c *instance) logFile() string { return filepath.Join(c.dir, "caddy.log") }

// showLog helps to find out why a test failed.
func (c *instance) showLog() {
	text, err := os.ReadFile(c.logFile())
	if err != nil {
		return
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	c.t.Logf("the end of Caddy's log:\n%s", strings.Join(lines[max(0, len(lines)-40):], "\n"))
}

// leftovers returns what must not be there while no Caddy runs.
func leftovers() []string {
	left := append(goroutines(), watched()...)
	for what, pool := range map[string]*caddy.UsagePool{"settings": shared.Settings, "counts of checks": shared.CheckCounters, "counts of pools": shared.PoolCounters} {
		pool.Range(func(key, _ any) bool {
			left = append(left, fmt.Sprintf("%s of %v", what, key))
			return true
		})
	}
	return left
}

// goroutines returns the stacks of goroutines that run code of this project
// other than its tests.
func goroutines() []string {
	buffer := make([]byte, 1<<20)
	for {
		n := runtime.Stack(buffer, true)
		if n < len(buffer) {
			buffer = buffer[:n]
			break
		}
		buffer = make([]byte, 2*len(buffer))
	}
	var found []string
	for stack := range strings.SplitSeq(string(buffer), "\n\n") {
		lines := strings.Split(stack, "\n")
		for i, line := range lines[:len(lines)-1] {
			function := strings.TrimPrefix(line, "created by ")
			if strings.HasPrefix(function, "github.com/caddy-alive/caddy-alive") && !strings.Contains(lines[i+1], "_test.go:") {
				found = append(found, stack)
				break
			}
		}
	}
	return found
}

// watched returns the addresses that there are targets for.
func watched() (addresses []string) {
	shared.Targets.Range(func(key, _ any) bool {
		addresses = append(addresses, "target "+key.(targetKey).upstream)
		return true
	})
	return addresses
}

// statuses counts the targets of the addresses by their status.
func statuses(addresses ...string) map[health.Status]int {
	count := make(map[health.Status]int)
	shared.Targets.Range(func(key, value any) bool {
		_, address, _ := strings.Cut(key.(targetKey).upstream, "/") // after the network
		if slices.Contains(addresses, address) {
			count[value.(sharedTarget).Status()]++
		}
		return true
	})
	return count
}

// is reports whether all checks of the address have the status.
func is(status health.Status, address string) bool {
	count := statuses(address)
	return count[status] > 0 && len(count) == 1
}

// url is where the plain sites are.
func (c *instance) url() string { return "http://" + loopback(c.httpPort) }

// secure is where the site https://localhost is.
func (c *instance) secure() string { return "https://localhost:" + strconv.Itoa(c.httpsPort) }

// plain returns a client of the plain sites, whose connections are its own.
func (c *instance) plain() *http.Client {
	transport := &http.Transport{MaxIdleConnsPerHost: 1024}
	c.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: patience}
}

// speaking returns a client of https://localhost that speaks one version of
// HTTP and trusts Caddy's own CA.
func (c *instance) speaking(version int) *http.Client {
	c.t.Helper()
	root := filepath.Join(c.dir, "pki", "authorities", "local", "root.crt")
	var ca []byte
	eventually(c.t, patience, "the internal CA has a root", func() bool {
		var err error
		ca, err = os.ReadFile(root)
		return err == nil && len(ca) > 0
	})
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		c.t.Fatalf("no certificate in %s", root)
	}
	trust := &tls.Config{RootCAs: roots, ServerName: "localhost"}
	address := loopback(c.httpsPort)

	if version == 3 {
		transport := &http3.Transport{
			TLSClientConfig: trust,
			Dial: func(ctx context.Context, _ string, tlsConfig *tls.Config, config *quic.Config) (*quic.Conn, error) {
				return quic.DialAddrEarly(ctx, address, tlsConfig, config)
			},
		}
		c.t.Cleanup(func() { transport.Close() })
		return &http.Client{Transport: transport, Timeout: patience}
	}
	transport := &http.Transport{
		TLSClientConfig: trust,
		Protocols:       new(http.Protocols),
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, address)
		},
	}
	transport.Protocols.SetHTTP1(version == 1)
	transport.Protocols.SetHTTP2(version == 2)
	c.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: patience}
}

// answer is what a client got.
type answer struct {
	status int
	body   string
	header http.Header
	proto  int
	err    error
}

func (a answer) String() string {
	if a.err != nil {
		return a.err.Error()
	}
	return fmt.Sprintf("%d %q", a.status, a.body)
}

func ask(client *http.Client, url string) answer { return askHost(client, url, "", nil) }

// askHost asks the site of a host.
func askHost(client *http.Client, url, host string, header http.Header) answer {
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return answer{err: err}
	}
	req.Host = host
	if header != nil {
		req.Header = header
	}
	resp, err := client.Do(req)
	if err != nil {
		return answer{err: err}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, string(body), resp.Header, resp.ProtoMajor, err}
}

// tally sends n requests, one after the other, and counts who answered them;
// whatever is not a full answer of status 200 counts for "error".
func tally(client *http.Client, url string, n int) map[string]int {
	count := make(map[string]int)
	for range n {
		if a := ask(client, url); a.err == nil && a.status == http.StatusOK {
			count[a.body]++
		} else {
			count["error"]++
		}
	}
	return count
}

// conduct is how a backend behaves.
type conduct int

const (
	// well answers everything.
	well conduct = iota
	// sick answers requests, but its check with 503.
	sick
	// broken passes its check, but answers requests with 500.
	broken
	// refusing does not listen.
	refusing
	// hanging accepts and never answers.
	hanging
	// resetting accepts and resets the connection.
	resetting
	// truncating closes the connection in the middle of the answer.
	truncating
)

// backend is a web server on a port of its own that can be put into any mode
// while it runs. It answers requests with its name; paths that begin with
// /healthz are checks.
type backend struct {
	t    testing.TB
	name string
	addr string
	hook func(*http.Request) // nil, or called before an answer

	mu       sync.Mutex
	mode     conduct
	changed  chan struct{}  // closed when the mode does
	requests int            // all but probes
	flying   int            // requests under way
	peak     int            // most of them at a time
	probes   map[string]int // by path
	since    history        // since the mode changed
	server   *http.Server   // nil while refusing
	served   chan struct{}  // closed when server has ended
}

// history is what a backend has seen since its mode changed.
type history struct {
	probes   int
	requests int
	earlier  int // probes before the first of the requests
}

// startBackend runs a backend until the test ends. The hook may be nil.
func startBackend(tb testing.TB, name string, hook func(*http.Request)) *backend {
	tb.Helper()
	b := &backend{
		t: tb, name: name, addr: loopback(freePort(tb)), hook: hook,
		changed: make(chan struct{}), probes: make(map[string]int),
	}
	b.open()
	tb.Cleanup(func() { b.set(refusing) })
	return b
}

// startBackends runs some that are well.
func startBackends(tb testing.TB, names ...string) (backends []*backend) {
	tb.Helper()
	for _, name := range names {
		backends = append(backends, startBackend(tb, name, nil))
	}
	return backends
}

// addresses are those of the backends, as reverse_proxy takes them.
func addresses(backends ...*backend) string {
	var list []string
	for _, b := range backends {
		list = append(list, b.addr)
	}
	return strings.Join(list, " ")
}

func (b *backend) open() {
	b.t.Helper()
	var stream net.Listener
	eventually(b.t, patience, b.addr+" is free", func() bool {
		var err error
		stream, err = net.Listen("tcp", b.addr)
		return err == nil
	})
	b.server, b.served = &http.Server{Handler: b, ErrorLog: discard}, make(chan struct{})
	go func(server *http.Server, served chan struct{}) {
		defer close(served)
		_ = server.Serve(resettable{stream, b})
	}(b.server, b.served)
}

// set changes the mode. What hangs is cut off.
func (b *backend) set(m conduct) {
	b.t.Helper()
	b.mu.Lock()
	b.mode, b.since = m, history{}
	close(b.changed)
	b.changed = make(chan struct{})
	b.mu.Unlock()
	switch {
	case m == refusing && b.server != nil:
		_ = b.server.Close()
		<-b.served
		b.server = nil
	case m != refusing && b.server == nil:
		b.open()
	}
}

// is reports the mode and a channel that is closed when it changes.
func (b *backend) is() (conduct, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.mode, b.changed
}

// seen returns what the backend has seen: the number of requests, and of
// probes.
func (b *backend) seen() (requests, probes int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, n := range b.probes {
		probes += n
	}
	return b.requests, probes
}

// inFlight returns the number of requests under way, and the largest ever.
func (b *backend) inFlight() (now, peak int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.flying, b.peak
}

// probed returns the number of probes of a path.
func (b *backend) probed(path string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.probes[path]
}

// history returns what was seen since the mode changed.
func (b *backend) history() history {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.since
}

func (b *backend) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	check := strings.HasPrefix(r.URL.Path, "/healthz")
	b.mu.Lock()
	m, changed := b.mode, b.changed
	if check {
		b.probes[r.URL.Path]++
		b.since.probes++
	} else {
		if b.since.requests == 0 {
			b.since.earlier = b.since.probes
		}
		b.since.requests++
		b.requests++
		b.flying++
		b.peak = max(b.peak, b.flying)
		defer func() {
			b.mu.Lock()
			b.flying--
			b.mu.Unlock()
		}()
	}
	b.mu.Unlock()

	switch m {
	case hanging:
		select {
		case <-changed:
		case <-r.Context().Done():
		}
		panic(http.ErrAbortHandler)
	case resetting:
		if conn, _, err := http.NewResponseController(w).Hijack(); err == nil {
			abort(conn)
		}
		return
	case truncating:
		if conn, _, err := http.NewResponseController(w).Hijack(); err == nil {
			_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nthe beginning")
			conn.Close()
		}
		return
	default: // the others answer
	}
	if b.hook != nil {
		b.hook(r)
	}
	switch {
	case m == sick && check:
		http.Error(w, "no database", http.StatusServiceUnavailable)
	case m == broken && !check:
		http.Error(w, "no idea", http.StatusInternalServerError)
	default:
		_, _ = io.WriteString(w, b.name)
	}
}

// resettable is the listener of a backend.
type resettable struct {
	net.Listener
	b *backend
}

func (l resettable) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if m, _ := l.b.is(); m != resetting {
			return conn, nil
		}
		abort(conn)
	}
}

// countingListener counts the connections that it accepts.
type countingListener struct {
	net.Listener
	connections atomic.Int32
}

func (l *countingListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err == nil {
		l.connections.Add(1)
	}
	return conn, err
}

// discard is for servers whose clients fail on purpose.
var discard = log.New(io.Discard, "", 0)

// abort resets a connection.
func abort(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	conn.Close()
}

// gate holds what goes through it until it is opened.
type gate struct {
	opened chan struct{}
	once   sync.Once
}

// newGate returns one that is opened at the end of the test at the latest.
func newGate(tb testing.TB) *gate {
	tb.Helper()
	g := &gate{opened: make(chan struct{})}
	tb.Cleanup(g.open)
	return g
}

func (g *gate) open() { g.once.Do(func() { close(g.opened) }) }

// pass waits for the gate, or for the client to leave.
func (g *gate) pass(r *http.Request) {
	select {
	case <-g.opened:
	case <-r.Context().Done():
	}
}

// selfSigned returns a certificate for app.internal that is its own CA, and
// the file that it is in.
func selfSigned(tb testing.TB) (tls.Certificate, string) {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(time.Now().UnixNano()),
		Subject:               pkix.Name{CommonName: "app.internal"},
		DNSNames:              []string{"app.internal"},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		tb.Fatal(err)
	}
	file := filepath.Join(tb.TempDir(), "ca.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		tb.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, file
}

// preface is a listener whose connections must begin with a PROXY protocol
// header, version 2. It closes those that do not.
type preface struct {
	net.Listener
	missing *failures
}

func (l preface) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if err := skipHeader(conn); err != nil {
			l.missing.add(err)
			conn.Close()
			continue
		}
		return conn, nil
	}
}

// skipHeader reads a PROXY protocol header, version 2.
func skipHeader(conn net.Conn) error {
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	defer conn.SetReadDeadline(time.Time{})
	head := make([]byte, 16)
	if _, err := io.ReadFull(conn, head); err != nil {
		return fmt.Errorf("reading the header: %v", err)
	}
	if signature := "\r\n\r\n\x00\r\nQUIT\n"; string(head[:12]) != signature || head[12]>>4 != 2 {
		return fmt.Errorf("not a PROXY protocol header: %q", head)
	}
	_, err := io.CopyN(io.Discard, conn, int64(head[14])<<8|int64(head[15]))
	return err
}

// failures collects errors from any goroutine.
type failures struct {
	mu   sync.Mutex
	errs []error
}

func (f *failures) add(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.errs = append(f.errs, err)
}

// err joins the first few of them.
func (f *failures) err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := len(f.errs); n > 5 {
		return fmt.Errorf("%d errors, the first: %w", n, errors.Join(f.errs[:5]...))
	}
	return errors.Join(f.errs...)
}

// traffic is a number of clients that ask without a pause.
type traffic struct {
	failures
	answers map[string]int // by body, guarded by mu
	stop    func()         // ends them and waits
}

// startTraffic runs it until it is stopped, at the end of the test at the
// latest. Each answer that is not 200 is a failure.
func startTraffic(tb testing.TB, clients int, ask func() answer) *traffic {
	tb.Helper()
	f := &traffic{answers: make(map[string]int)}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			for ctx.Err() == nil {
				a := ask()
				if a.err != nil || a.status != http.StatusOK {
					f.add(errors.New(a.String()))
				}
				f.mu.Lock()
				f.answers[a.body]++
				f.mu.Unlock()
			}
		})
	}
	f.stop = func() {
		cancel()
		wg.Wait()
	}
	tb.Cleanup(f.stop)
	return f
}

// answered returns how many answers there were.
func (f *traffic) answered() (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, count := range f.answers {
		n += count
	}
	return n
}
