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

// resting is how long usage is looked at for its least. It is longer than connections
// to upstreams idle, by the config, and than probes take.
const resting = 3 * time.Second

// usage is what a process that rests has.
type usage struct {
	goroutines, files int
	heap, resident    int // in KiB: what is in use after a collection, and what it has of the system
}

// usage returns the least that Caddy has while nobody asks it anything.
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

// profile asks Caddy for a profile as text, over a connection that does not stay.
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

// number returns what a pattern finds.
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
