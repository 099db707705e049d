// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"testing"
	"time"
)

// resting is how long the lowest usage is looked for. It is longer than the idle
// timeout of connections to upstreams in the config, and longer than a probe.
const resting = 3 * time.Second

// usage is what an idle process uses.
type usage struct {
	goroutines, files int
	heap, resident    int // in KiB: the heap after a collection, and the resident memory
}

// usage returns the lowest usage of Caddy while it gets no requests.
func (c *instance) usage() usage {
	c.t.Helper()
	least := c.usageNow()
	for began := time.Now(); time.Since(began) < resting; time.Sleep(100 * time.Millisecond) {
		now := c.usageNow()
		least.goroutines, least.files = min(least.goroutines, now.goroutines), min(least.files, now.files)
		least.heap, least.resident = min(least.heap, now.heap), min(least.resident, now.resident)
	}
	return least
}

func (c *instance) usageNow() (u usage) {
	c.t.Helper()
	heap := c.profile("heap?gc=1&debug=1")
	u.heap = number(c.t, `# HeapAlloc = (\d+)`, heap) >> 10
	u.goroutines = number(c.t, `total (\d+)`, c.profile("goroutine?debug=1"))
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", c.pid))
	if err != nil {
		skip(c.t, "there is no /proc here: %v", err)
	}
	u.files = len(files)
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.pid))
	if err != nil {
		c.t.Fatal(err)
	}
	u.resident = number(c.t, `RssAnon:\s+(\d+)`, string(status))
	return u
}

// profile gets a profile from Caddy as text, over a connection that is not kept.
func (c *instance) profile(name string) string {
	c.t.Helper()
	request, err := http.NewRequestWithContext(c.t.Context(), http.MethodGet, "http://"+c.admin+"/debug/pprof/"+name, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	request.Close = true
	response, err := c.client.Do(request)
	if err != nil {
		c.t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		c.t.Fatalf("%s: status %d, %v", name, response.StatusCode, err)
	}
	return string(text)
}

// number returns the number that a pattern matches.
func number(t *testing.T, pattern, text string) int {
	t.Helper()
	m := regexp.MustCompile(pattern).FindStringSubmatch(text)
	if m == nil {
		t.Fatalf("no %s in %.200s", pattern, text)
	}
	n, err := strconv.Atoi(m[1])
	if err != nil {
		t.Fatal(err)
	}
	return n
}
