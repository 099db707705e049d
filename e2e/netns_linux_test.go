// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const (
	// apart is the config of Caddy between hosts. One retry is enough for two upstreams,
	// because none is tried twice. The timeout of a probe leaves TCP time to send its
	// first packet again, which it does after a second.
	apart = `{
	metrics
	persist_config off
	auto_https off
}
http://10.77.0.1:8080 {
	reverse_proxy %s {
		lb_policy alive {
			check http /healthz {
				interval 500ms
				timeout 1500ms
			}
		}
		lb_retries 1
		transport http {
			dial_timeout 3s
			response_header_timeout 2s
		}
	}
}
`
	// an interval with its jitter, and three timeouts, or two
	toLoseHost = 550*time.Millisecond + 3*1500*time.Millisecond
	toFindHost = 550*time.Millisecond + 2*1500*time.Millisecond
)

// lan is Caddy, a client and two upstreams on hosts of their own.
type lan struct {
	*hosts
	*instance
	t        *testing.T
	one, two string
	load     *load
}

func startLAN(t *testing.T) *lan {
	t.Helper()
	caddy, err := build()
	if err != nil {
		t.Fatal(err)
	}
	n := &lan{t: t, hosts: newHosts(t, "client", "one", "two"), one: "10.77.1.2:80", two: "10.77.2.2:80"}
	for host, address := range map[string]string{"one": n.one, "two": n.two} {
		listener := n.listen(host, address)
		server := &http.Server{Handler: behaving(new(atomic.Int32), address, services(address)), ReadHeaderTimeout: patience}
		t.Cleanup(func() { server.Close() })
		go func() { _ = server.Serve(listener) }()
	}
	n.instance = &instance{t: t, caddy: caddy, folder: t.TempDir(), admin: "127.0.0.1:2019", client: &http.Client{
		Timeout: patience, Transport: &http.Transport{DialContext: n.from("caddy")},
	}}
	n.config = filepath.Join(n.folder, "Caddyfile")
	if err := os.WriteFile(n.config, fmt.Appendf(nil, apart, n.one+" "+n.two), 0o600); err != nil {
		t.Fatal(err)
	}
	n.inside = func(command *exec.Cmd) *exec.Cmd { return n.command(t.Context(), "caddy", command.Args...) }
	n.start()
	t.Cleanup(func() { n.stop() })
	eventually(t, "both are up", func() bool { return n.status(n.one) == "up" && n.status(n.two) == "up" })
	clients := make([][]kind, 4)
	for i := range clients {
		clients[i] = []kind{{"get", never, askSmall}}
	}
	n.load = startLoad(t.Context(), "http://10.77.0.1:8080", n.from("client"), clients)
	t.Cleanup(n.load.end)
	return n
}

// status returns the status that the list shows for an upstream.
func (n *lan) status(upstream string) string {
	var entries []struct{ Upstream, Status string }
	text, err := n.get("/alive/upstreams")
	if err == nil {
		err = json.Unmarshal([]byte(text), &entries)
	}
	if err != nil {
		n.t.Errorf("the list: %v", err)
	}
	for _, e := range entries {
		if e.Upstream == upstream {
			return e.Status
		}
	}
	return ""
}

func (n *lan) get(path string) (string, error) {
	return get(n.client, "http://"+n.admin+path)
}

// flips returns how often an upstream went down.
func (n *lan) flips(upstream string) (flips int) {
	n.t.Helper()
	text, err := n.get("/metrics")
	if err != nil {
		n.t.Fatal(err)
	}
	return downs(n.t, text, upstream)
}

// shares pauses the load, and returns how many of these requests each upstream answers.
func (n *lan) shares(times int) map[string]int {
	n.t.Helper()
	n.load.rest.Lock()
	defer n.load.rest.Unlock()
	counts := make(map[string]int)
	for range times {
		by, err := askSmall(n.t.Context(), n.load.all[0], n.load.site)
		if err != nil {
			by = err.Error()
		}
		counts[by]++
	}
	return counts
}

// watch fails the test if an upstream is not up at any time until it is stopped.
func (n *lan) watch(upstream string) (stop func()) {
	ctx, cancel := context.WithCancel(n.t.Context())
	var watching sync.WaitGroup
	watching.Go(func() {
		for ; ctx.Err() == nil; time.Sleep(50 * time.Millisecond) {
			if is := n.status(upstream); is != "up" {
				n.t.Errorf("%s is %q meanwhile", upstream, is)
				return
			}
		}
	})
	return func() {
		cancel()
		watching.Wait()
	}
}

// Between hosts, a partition under load fails no request. An upstream that cannot be
// reached is noticed in time, whether no packets get through, or only those of the
// answers are lost, or its link is down. It returns with the cable, and the other
// upstream stays up. With loss and delay, both stay up and no request fails.
func TestSeveralHosts(t *testing.T) {
	n := startLAN(t)
	both := map[string]int{n.one: 50, n.two: 50}
	want := func(what string, want map[string]int) {
		t.Helper()
		if got := n.shares(100); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: answers %v, want %v", what, got, want)
		}
	}
	want("all is well", both)

	stop := n.watch(n.two)
	defer stop()
	cable, device := n.cables["one"], fmt.Sprintf("al%d-1b", os.Getpid())
	partitions := []struct {
		what         string
		damage, mend func()
	}{
		{"nothing goes through", func() { cable.is(condition{cut: [2]bool{true, true}}) }, func() { cable.is(condition{}) }},
		{"no answer comes back", func() { cable.is(condition{cut: [2]bool{false, true}}) }, func() { cable.is(condition{}) }},
		{"the link is down", func() { n.must("one", "ip link set "+device+" down") }, func() { n.must("one", "ip link set "+device+" up") }},
	}
	for i, p := range partitions {
		n.sees(p.what, p.damage, n.one, "down", toLoseHost)
		want(p.what, map[string]int{n.two: 100})
		n.sees(p.what+" no more", p.mend, n.one, "up", toFindHost)
		want(p.what+" no more", both)
		if flips := n.flips(n.one); flips != i+1 {
			t.Errorf("%s: it went down %d times by now, want %d", p.what, flips, i+1)
		}
	}

	stopOne := n.watch(n.one)
	before := n.load.count("get")
	for _, cable := range n.cables {
		cable.is(condition{loss: 0.03, delay: 20 * time.Millisecond, jitter: 5 * time.Millisecond})
	}
	const poor = 5 * time.Second
	eventually(t, "it lasts for a while", func() bool { return n.load.count("get") > before+200 })
	time.Sleep(poor)
	stopOne()
	for host, cable := range n.cables {
		carried, lost := cable.carried.Load(), cable.lost.Load()
		t.Logf("%s: %d packets were carried, %d lost", host, carried, lost)
		if lost == 0 {
			t.Errorf("%s: nothing was lost", host)
		}
		cable.is(condition{})
	}
	stop()
	n.load.end()
	if flips := n.flips(n.one); flips != len(partitions) {
		t.Errorf("one went down %d times, want %d", flips, len(partitions))
	}
	if flips := n.flips(n.two); flips != 0 {
		t.Errorf("two went down %d times", flips)
	}
	if failed := n.load.failed.all; len(failed) > 0 {
		t.Errorf("of %d requests, %d failed: %v", n.load.count("get"), len(failed), errors.Join(failed[:min(5, len(failed))]...))
	}
	t.Logf("%d requests", n.load.count("get"))
}

// sees makes something happen under load, and expects the list to show this status of
// an upstream in time.
func (n *lan) sees(what string, happen func(), upstream, as string, within time.Duration) {
	n.t.Helper()
	before := n.load.count("get")
	eventually(n.t, "clients ask", func() bool { return n.load.count("get") > before+50 })
	began := time.Now()
	happen()
	eventually(n.t, what+": it is "+as, func() bool { return n.status(upstream) == as })
	took := time.Since(began)
	if took > within+busy {
		n.t.Errorf("%s: that it is %s took %s, want %s", what, as, took, within)
	}
	n.t.Logf("%s: %s after %s", what, as, took.Round(time.Millisecond))
}
