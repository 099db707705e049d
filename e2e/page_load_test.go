// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// clockTick is the unit of CPU time in /proc.
const clockTick = 10 * time.Millisecond

// cpu returns how much CPU time a process has used.
func (c *instance) cpu() time.Duration {
	c.t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.pid))
	if err != nil {
		skip(c.t, "there is no /proc here: %v", err)
	}
	_, rest, _ := bytes.Cut(stat, []byte(") ")) // the name may have spaces
	fields := strings.Fields(string(rest))
	ticks := 0
	for _, field := range fields[11:13] {
		n, err := strconv.Atoi(field)
		if err != nil {
			c.t.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * clockTick
}

// renderedAt matches the time at which a page was made.
var renderedAt = regexp.MustCompile(`<time id="at" datetime="([^"]+)">`)

// madeAt returns when the page that is sent now was made.
func madeAt(t *testing.T, c *instance) string {
	t.Helper()
	r, err := gzip.NewReader(bytes.NewReader(refresh(t, c)))
	if err != nil {
		t.Fatal(err)
	}
	page, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	match := renderedAt.FindSubmatch(page)
	if match == nil {
		t.Fatalf("the page does not say when it was made:\n%s", page)
	}
	return string(match[1])
}

// With five thousand upstreams, one answer costs 50 ms of CPU at most, and fifty viewers do not
// cost fifty times as much as one: what they get is made once.
func TestPage_CostsLittleWithFiveThousandUpstreams(t *testing.T) {
	const (
		upstreams  = 5000
		mostOfOne  = 50 * time.Millisecond
		viewers    = 50
		mostOfSent = 2 * time.Millisecond // to send what is made already
	)
	one := startBackendAt(t, "0.0.0.0:0")
	addresses := deadAmong(one, upstreams, 100)
	c := startCaddy(t, t.TempDir(), "", strings.Replace(paged("shop", addresses...), "interval 200ms", "interval 5m", 1))
	eventually(t, "all are known", func() bool {
		modes := c.modes()
		return len(modes) == upstreams && modes[addresses[0]] == "ready down" && modes[addresses[upstreams-1]] == "ready up"
	})
	// cost returns the CPU time of a while in which some viewers ask twice a second, and how
	// many pages were made and sent
	cost := func(viewers int) (used time.Duration, made, sent int) {
		var all sync.WaitGroup
		var mu sync.Mutex // guards what follows
		times := make(map[string]bool)
		before := c.cpu()
		deadline := time.After(8 * time.Second)
		over := make(chan struct{})
		for range viewers {
			all.Go(func() {
				ticker := time.NewTicker(500 * time.Millisecond)
				defer ticker.Stop()
				for {
					select {
					case <-over:
						return
					case <-ticker.C:
					}
					at := madeAt(t, c)
					mu.Lock()
					times[at] = true
					sent++
					mu.Unlock()
				}
			})
		}
		<-deadline
		close(over)
		all.Wait()
		return c.cpu() - before, len(times), sent
	}
	idle, _, _ := cost(0)
	for _, n := range []int{1, viewers} {
		used, made, sent := cost(n)
		used = max(0, used-idle)
		t.Logf("%d viewers: %s of CPU in 8 s, without %s that it uses idle; %d pages were made and %d sent", n, used, idle, made, sent)
		if most := time.Duration(made+1)*mostOfOne + time.Duration(sent)*mostOfSent; made == 0 || used > most {
			t.Errorf("%d viewers: %s of CPU for %d pages that were made and %d that were sent, want %s at most", n, used, made, sent, most)
		}
	}
	if size := len(refresh(t, c)); size > 40<<10 {
		t.Errorf("a refresh is %d bytes compressed, want 40 KiB at most", size)
	}
}
