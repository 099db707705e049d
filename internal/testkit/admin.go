// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Upstream is a row of the list of the admin API. It is written out again, so that a test
// fails if a name in the answer changes.
type Upstream struct {
	Pool            string     `json:"pool"`
	Upstream        string     `json:"upstream"`
	Status          string     `json:"status"`
	Mode            string     `json:"mode"`
	Rebind          bool       `json:"rebind"`
	Weight          int        `json:"weight"`
	Configured      int        `json:"configured_weight"`
	EffectiveWeight float64    `json:"effective_weight"`
	Group           int        `json:"group"`
	Backup          bool       `json:"backup"`
	Serving         bool       `json:"serving"`
	Suspect         bool       `json:"suspect"`
	EjectedUntil    *time.Time `json:"ejected_until"`
	Why             string     `json:"why"`
	Requests        int        `json:"requests"`
	Limit           int        `json:"limit"`
	Bound           int        `json:"bound"`
	Fails           int        `json:"fails"`
	Since           *time.Time `json:"since"`
	Checks          []Check    `json:"checks"`
	FailOpen        bool       `json:"fail_open"`
	Persisted       *bool      `json:"persisted"`
	Gone            bool       `json:"gone"`
	Idle            bool       `json:"idle"`
}

// Pool is a row of the list of pools of the admin API.
type Pool struct {
	Pool        string         `json:"pool"`
	Upstreams   int            `json:"upstreams"`
	States      map[string]int `json:"states"`
	Idle        int            `json:"idle"`
	Serving     int            `json:"serving"`
	Receiving   int            `json:"receiving"`
	Groups      int            `json:"groups"`
	GroupsInUse []int          `json:"groups_in_use"`
	Requests    int            `json:"requests"`
	Queue       *struct {
		Waiting int `json:"waiting"`
		Limit   int `json:"limit"`
	} `json:"queue"`
	FailOpen bool `json:"fail_open"`
}

// Check is what the list says of one check of an upstream.
type Check struct {
	Check             string     `json:"check"`
	Status            string     `json:"status"`
	Draining          bool       `json:"draining"`
	ConsecutivePasses int        `json:"consecutive_passes"`
	ConsecutiveFails  int        `json:"consecutive_fails"`
	Last              *Result    `json:"last"`
	LastFailed        *Result    `json:"last_failed"`
	Recent            []float64  `json:"recent_ms"`
	Next              *time.Time `json:"next"`
}

// Result is what the list says of one probe.
type Result struct {
	At         time.Time `json:"at"`
	DurationMS float64   `json:"duration_ms"`
	Passed     bool      `json:"passed"`
	Reason     string    `json:"reason"`
}

// ParseList decodes an answer of the admin API.
func ParseList(text string) (rows []Upstream, err error) {
	err = json.Unmarshal([]byte(text), &rows)
	return rows, err
}

// admin is the client of the admin API. It keeps no connections, because a reload
// closes them.
var admin = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: Patience}

// TryCall sends a request to the admin API. It fails while a reload replaces the
// admin endpoint.
func (c *Caddy) TryCall(method, path string, query url.Values, body string) (status int, text string, err error) {
	request, err := http.NewRequestWithContext(c.T.Context(), method, "http://"+c.Admin+path+"?"+query.Encode(), strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	response, err := admin.Do(request)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	read, err := io.ReadAll(response.Body)
	return response.StatusCode, string(read), err
}

// Call sends a request to the admin API, and returns the status and the body of the
// answer.
func (c *Caddy) Call(method, path string, query url.Values, body string) (status int, text string) {
	c.T.Helper()
	status, text, err := c.TryCall(method, path, query, body)
	if err != nil {
		c.T.Fatal(err)
	}
	return status, text
}

// TryList returns the rows of the list.
func (c *Caddy) TryList(query url.Values) ([]Upstream, error) {
	status, text, err := c.TryCall(http.MethodGet, "/alive/upstreams", query, "")
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("status %d: %s", status, text)
	}
	if err != nil {
		return nil, err
	}
	return ParseList(text)
}

// List returns the rows of the list.
func (c *Caddy) List(query url.Values) []Upstream {
	c.T.Helper()
	rows, err := c.TryList(query)
	if err != nil {
		c.T.Fatal(err)
	}
	return rows
}

// Pools returns the rows of pools, of all if no name is given.
func (c *Caddy) Pools(name string) (pools []Pool) {
	c.T.Helper()
	query := make(url.Values)
	if name != "" {
		query.Set("pool", name)
	}
	status, text := c.Call(http.MethodGet, "/alive/pools", query, "")
	if err := json.Unmarshal([]byte(text), &pools); err != nil || status != http.StatusOK {
		c.T.Fatalf("GET /alive/pools: status %d: %s: %v", status, text, err)
	}
	return pools
}

// One returns the row of an upstream that has only one.
func (c *Caddy) One(upstream string) Upstream {
	c.T.Helper()
	rows := c.List(url.Values{"upstream": {upstream}})
	if len(rows) != 1 {
		c.T.Fatalf("%s: %d rows, want 1: %+v", upstream, len(rows), rows)
	}
	return rows[0]
}

// Patch changes an upstream, and returns its rows.
func (c *Caddy) Patch(upstream, body string) []Upstream {
	c.T.Helper()
	status, text := c.Call(http.MethodPatch, "/alive/upstreams", url.Values{"upstream": {upstream}}, body)
	if status != http.StatusOK {
		c.T.Fatalf("PATCH %s %s: status %d: %s", upstream, body, status, text)
	}
	rows, err := ParseList(text)
	if err != nil {
		c.T.Fatal(err)
	}
	return rows
}

// Addresses returns the upstreams in the list, sorted, each once. Caddy shows a list for a
// second before it makes another.
func (c *Caddy) Addresses() (addresses []string) {
	c.T.Helper()
	for _, row := range c.List(nil) {
		addresses = append(addresses, row.Upstream)
	}
	slices.Sort(addresses)
	return slices.Compact(addresses)
}

// rowsOf returns the rows of one upstream, none while a reload replaces the admin endpoint.
// The whole list can be a second old, and what is asked for one upstream is not.
func (c *Caddy) rowsOf(upstream string) []Upstream {
	rows, _ := c.TryList(url.Values{"upstream": {upstream}})
	return rows
}

// Statuses counts the checks of the upstreams by their status. Checks of one upstream
// with one label count once for each status. There are none while a reload replaces
// the admin endpoint.
func (c *Caddy) Statuses(upstreams ...string) map[string]int {
	count := make(map[string]int)
	for _, upstream := range upstreams {
		type result struct{ label, status string }
		seen := make(map[result]bool)
		for _, row := range c.rowsOf(upstream) {
			for _, check := range row.Checks {
				if r := (result{check.Check, check.Status}); !seen[r] {
					seen[r] = true
					count[r.status]++
				}
			}
		}
	}
	return count
}

// Up reports whether each of the upstreams has checks, and all of them are up.
func (c *Caddy) Up(upstreams ...string) bool { return c.all("up", upstreams) }

// Down reports whether each of the upstreams has checks, and all of them are down.
func (c *Caddy) Down(upstreams ...string) bool { return c.all("down", upstreams) }

func (c *Caddy) all(status string, upstreams []string) bool {
	for _, upstream := range upstreams {
		if count := c.Statuses(upstream); count[status] == 0 || len(count) > 1 {
			return false
		}
	}
	for _, upstream := range upstreams {
		c.awaitTold(upstream)
	}
	return true
}

// awaitTold waits until picks, metrics and the log know what the list says of an upstream. A
// probe sets the status, tells the others, and is over: then the next one has a time. One
// that follows at once has none, so this does not wait long.
func (c *Caddy) awaitTold(upstream string) {
	Poll(50*time.Millisecond, func() bool {
		return !slices.ContainsFunc(c.rowsOf(upstream), func(row Upstream) bool {
			return row.Mode != "maintenance" && slices.ContainsFunc(row.Checks, func(check Check) bool { return check.Next == nil })
		})
	})
}

// Status is the status of the check of an upstream whose label has a text, empty if
// there is none.
func (c *Caddy) Status(upstream, label string) string {
	for _, row := range c.rowsOf(upstream) {
		for _, check := range row.Checks {
			if strings.Contains(check.Check, label) {
				return check.Status
			}
		}
	}
	return ""
}

// Draining reports whether a check of the upstream knows that it drains.
func (c *Caddy) Draining(upstream string) bool {
	draining := slices.ContainsFunc(c.rowsOf(upstream), func(row Upstream) bool {
		return slices.ContainsFunc(row.Checks, func(check Check) bool { return check.Draining })
	})
	if draining {
		c.awaitTold(upstream)
	}
	return draining
}

var series = regexp.MustCompile(`(?m)^caddy_alive_(\S+\{.*\}|\S+) (\S+)$`)

// TryMetrics returns the metrics of this project as Prometheus reads them, by name and
// labels.
func (c *Caddy) TryMetrics() (map[string]float64, error) {
	status, text, err := c.TryCall(http.MethodGet, "/metrics", nil, "")
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("status %d: %s", status, text)
	}
	if err != nil {
		return nil, err
	}
	all := make(map[string]float64)
	for _, m := range series.FindAllStringSubmatch(text, -1) {
		if all[m[1]], err = strconv.ParseFloat(m[2], 64); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// Metrics returns the metrics of this project as Prometheus reads them, by name and
// labels.
func (c *Caddy) Metrics() map[string]float64 {
	c.T.Helper()
	all, err := c.TryMetrics()
	if err != nil {
		c.T.Fatal(err)
	}
	return all
}

// WantMetrics fails the test unless the metrics have these values. The value -1 means
// that there must be no such series.
func (c *Caddy) WantMetrics(what string, want map[string]float64) {
	c.T.Helper()
	got := c.Metrics()
	for name, value := range want {
		n, there := got[name]
		if !there {
			n = -1
		}
		if n != value {
			c.T.Errorf("%s: %s is %v, want %v", what, name, n, value)
		}
	}
}
