// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

func init() { servers[s3Address] = serveS3 }

// followTime is how long a change may take to be known at another Caddy, and healTime how
// long it may take both to agree after the engine serves again.
const (
	followTime = 5 * time.Second
	healTime   = 15 * time.Second
)

// member starts a Caddy of a fleet.
func (e *engine) member(t *testing.T, fleet, site string) *instance {
	t.Helper()
	c := prepare(t, buildWithStorages, e.storage, fmt.Sprintf("alive {\n\t\tfleet %s\n\t\tsync_interval 1s\n\t}", fleet), site)
	c.start()
	return c
}

// shown is what a Caddy lists of an upstream.
type shown struct {
	Upstream, Status, Mode string
	Persisted              *bool
}

// call sends a request to the admin API.
func (c *instance) call(method, path string, query url.Values, body string, to any) error {
	request, err := http.NewRequestWithContext(c.t.Context(), method, "http://"+c.admin+path+"?"+query.Encode(), strings.NewReader(body))
	if err != nil {
		return err
	}
	response, err := c.client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %d", response.StatusCode)
	}
	if err == nil {
		err = json.Unmarshal(text, to)
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", method, path, err, text)
	}
	return nil
}

// all returns what is listed, by upstream: the mode and the status, and whether it is stored.
func (c *instance) all() string {
	c.t.Helper()
	var rows []shown
	if err := c.call(http.MethodGet, "/alive/upstreams", nil, "", &rows); err != nil {
		c.t.Error(err)
	}
	var text strings.Builder
	for _, row := range rows {
		fmt.Fprintln(&text, row)
	}
	return text.String()
}

func (s shown) String() string {
	stored := ""
	if s.Persisted != nil {
		stored = fmt.Sprintf(" persisted:%v", *s.Persisted)
	}
	return fmt.Sprintf("%s %s %s%s", s.Upstream, s.Mode, s.Status, stored)
}

// set sets the mode of an upstream, and returns what is listed of it then.
func (c *instance) set(upstream, mode string) string {
	c.t.Helper()
	var rows []shown
	if err := c.call(http.MethodPatch, "/alive/upstreams", url.Values{"upstream": {upstream}}, fmt.Sprintf(`{"mode": %q}`, mode), &rows); err != nil {
		c.t.Error(err)
	}
	if len(rows) != 1 {
		c.t.Errorf("%s: rows %v", upstream, rows)
		return ""
	}
	return rows[0].String()
}

// within fails the test unless all Caddys list the same within this time: the upstreams in
// these modes. It returns how long it took.
func within(t *testing.T, most time.Duration, modes map[string]string, caddys ...*instance) time.Duration {
	t.Helper()
	began := time.Now()
	for {
		agreed := 0
		var last string
		for _, c := range caddys {
			last = c.all()
			match := !strings.Contains(last, "persisted:false")
			for upstream, mode := range modes {
				match = match && strings.Contains(last, upstream+" "+mode)
			}
			if match {
				agreed++
			}
		}
		took := time.Since(began)
		if agreed == len(caddys) {
			return took
		}
		if took > most {
			t.Fatalf("not in %v: %v; %d of %d list it; the last one lists\n%s", most, modes, agreed, len(caddys), last)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// traffic sends requests to Caddys until it is stopped, and returns what failed.
func traffic(t *testing.T, caddys ...*instance) (stop func() error) {
	ctx, cancel := context.WithCancel(t.Context())
	client := &http.Client{Timeout: patience}
	var mu sync.Mutex
	var failed []error
	sent := make([]int, len(caddys))
	var clients sync.WaitGroup
	for i, c := range caddys {
		clients.Go(func() {
			for ctx.Err() == nil {
				response, err := client.Get("http://" + c.site)
				if err == nil {
					if response.StatusCode != http.StatusOK {
						err = fmt.Errorf("status %d", response.StatusCode)
					}
					response.Body.Close()
				}
				mu.Lock()
				sent[i]++
				if err != nil {
					failed = append(failed, err)
				}
				mu.Unlock()
				time.Sleep(20 * time.Millisecond)
			}
		})
	}
	return func() error {
		cancel()
		clients.Wait()
		for _, n := range sent {
			if n < 10 {
				failed = append(failed, fmt.Errorf("only %v requests were sent", sent))
			}
		}
		return errors.Join(failed...)
	}
}

// Caddys of a fleet follow each other on all engines. Another fleet on the same engine with a
// name that begins with the same letters is not touched. While the engine hangs, is gone, or is
// emptied, requests go on and modes apply where they are set; afterwards all Caddys have all
// of them, and the engine, too.
func TestFleet_OnEngines(t *testing.T) {
	onEachEngine(t, func(t *testing.T, e *engine) {
		a, b, c := startBackend(t), startBackend(t), startBackend(t)
		site := operated(a.addr, b.addr, c.addr)
		one, two := e.member(t, "shops", site), e.member(t, "shops", site)
		other := e.member(t, "shop", site)
		modes := map[string]string{a.addr: "ready up", b.addr: "ready up", c.addr: "ready up"}
		within(t, patience, modes, one, two, other)
		for upstream := range modes {
			modes[upstream] = "ready"
		}
		others := maps.Clone(modes)
		untouched := func(t *testing.T) {
			t.Helper()
			within(t, 0, others, other)
			for _, c := range []*instance{one, two, other} {
				if log := c.log(); strings.Contains(log, "ignoring a stored") {
					t.Errorf("a Caddy reads what is not of its fleet:\n%s", log)
				}
			}
		}
		run := func(name string, step func(t *testing.T)) {
			t.Helper()
			if !t.Run(name, step) {
				t.FailNow()
			}
		}

		run("follow", func(t *testing.T) {
			for _, step := range []struct {
				at             *instance
				upstream, mode string
			}{{one, b.addr, "drain"}, {two, b.addr, "ready"}, {two, b.addr, "maintenance"}, {one, b.addr, "drain"}} {
				modes[step.upstream] = step.mode
				if got := step.at.set(step.upstream, step.mode); strings.Contains(got, "persisted") {
					t.Errorf("not stored: %s", got)
				}
				t.Logf("known at both after %v", within(t, followTime, modes, one, two))
			}
			if got := other.set(c.addr, "drain"); strings.Contains(got, "persisted") {
				t.Errorf("not stored: %s", got)
			}
			others[c.addr] = "drain"
			time.Sleep(2500 * time.Millisecond) // two looks and a half
			untouched(t)
			within(t, 0, modes, one, two)
		})

		// outage says what applies during an outage, and when both agree after it
		outage := func(t *testing.T, lasts time.Duration, begin, end func()) {
			stop := traffic(t, one, two, other)
			began := time.Now()
			begin()
			changes := []struct {
				at             *instance
				upstream, mode string
			}{{one, b.addr, "ready"}, {two, c.addr, "drain"}, {one, c.addr, "maintenance"}}
			if modes[b.addr] == "ready" {
				changes[0].mode = "drain"
			}
			for _, change := range changes {
				if got := change.at.set(change.upstream, change.mode); !strings.HasPrefix(got, change.upstream+" "+change.mode+" ") || !strings.HasSuffix(got, " persisted:false") {
					t.Errorf("a change during the outage: %s", got)
				}
				modes[change.upstream] = change.mode
			}
			if answered := one.answers(6); modes[b.addr] == "drain" && answered[b.addr] > 0 || answered[c.addr] > 0 {
				t.Errorf("the modes do not apply: %v", answered)
			}
			time.Sleep(time.Until(began.Add(lasts)))
			end()
			defer func() {
				if t.Failed() {
					t.Logf("stored is\n%s", stored(t, e.open(t)))
				}
			}()
			t.Logf("both agree %v after the outage", within(t, healTime, modes, one, two))
			untouched(t)
			if err := stop(); err != nil {
				t.Errorf("requests failed: %v", err)
			}
		}
		if e.launch != nil {
			run("hangs", func(t *testing.T) {
				outage(t, 5*time.Second, func() { e.signal(syscall.SIGSTOP) }, func() { e.signal(syscall.SIGCONT) })
			})
		}
		run("killed", func(t *testing.T) {
			outage(t, 3*time.Second, e.kill, e.restart)
		})
		run("emptied", func(t *testing.T) {
			stop := traffic(t, one, two, other)
			if err := e.flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			storage := e.open(t)
			began := time.Now()
			eventually(t, "all that was set is stored again", func() bool {
				text := stored(t, storage)
				complete := strings.Count(text, `"mode"`) == 3 // two of one fleet, one of the other
				for _, set := range []struct {
					modes    map[string]string
					upstream string
				}{{modes, b.addr}, {modes, c.addr}, {others, c.addr}} {
					complete = complete && strings.Contains(text, fmt.Sprintf(`{"address":%q,"mode":%q`, set.upstream, set.modes[set.upstream]))
				}
				return complete
			})
			t.Logf("stored again after %v", time.Since(began))
			within(t, 0, modes, one, two)
			untouched(t)
			if err := stop(); err != nil {
				t.Errorf("requests failed: %v", err)
			}
			// only the engine has them now
			for _, c := range []*instance{one, two, other} {
				c.kill()
			}
			one.start()
			other.start()
			within(t, followTime, modes, one)
			untouched(t)
		})
	})
}
