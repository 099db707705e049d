// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

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

// known is what a Caddy says of its fleet.
type known struct {
	Problem string
	Members []struct {
		ID, Member, State string
		Self              bool
	}
	Wait *struct{ Pending, Lost []string }
}

// fleet returns what a Caddy says of its fleet, and of the wait for an upstream.
func (c *instance) fleet(upstream string) (f known) {
	c.t.Helper()
	query := url.Values{}
	if upstream != "" {
		query.Set("upstream", upstream)
	}
	if err := c.call(http.MethodGet, "/alive/fleet", query, "", &f); err != nil {
		c.t.Error(err)
	}
	return f
}

// live returns the names of the members that a Caddy takes for live, in order.
func (f known) live() string {
	var names []string
	for _, m := range f.Members {
		if m.State == "live" {
			names = append(names, m.Member)
		}
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

// slowBackend is an upstream that takes its time for /slow.
type slowBackend struct {
	addr string
	mu   sync.Mutex
	busy int
	last time.Time // when the last slow answer ended
}

func startSlow(t *testing.T, takes time.Duration) *slowBackend {
	s := new(slowBackend)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/slow" {
			return
		}
		s.mu.Lock()
		s.busy++
		s.mu.Unlock()
		time.Sleep(takes)
		s.mu.Lock()
		s.busy--
		s.last = time.Now()
		s.mu.Unlock()
	}))
	t.Cleanup(server.Close)
	s.addr = server.Listener.Addr().String()
	return s
}

// state returns how many slow requests there are, and when the last one ended.
func (s *slowBackend) state() (busy int, last time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.busy, s.last
}

// isBusy reports whether there is a slow request.
func (s *slowBackend) isBusy() bool {
	busy, _ := s.state()
	return busy > 0
}

// slowRequest sends a slow request, which has to succeed.
func (c *instance) slowRequest() {
	response, err := http.Get("http://" + c.site + "/slow")
	if err != nil {
		c.t.Error(err)
		return
	}
	response.Body.Close()
	if response.StatusCode != http.StatusOK {
		c.t.Errorf("a request in flight got status %d", response.StatusCode)
	}
}

// drained says how drain with a wait ends, and when.
type drained struct {
	out    string
	status int
	at     time.Time
}

// drain drains an upstream, and waits.
func (c *instance) drain(upstream string, most time.Duration, flags ...string) drained {
	c.t.Helper()
	args := append([]string{"drain", upstream, "--wait", most.String(), "--address", c.admin}, flags...)
	out, errs, status := c.runFor(most+patience, args...)
	return drained{out + errs, status, time.Now()}
}

// ended reports whether it ended like this: with this status, and this text in what it prints.
func (d drained) ended(status int, text string) bool {
	return d.status == status && strings.Contains(d.out, text)
}
