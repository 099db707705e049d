// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"fmt"
	"io"
	"maps"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
)

// Settles fails the test unless the requests are answered as wanted, soon and
// from then on: a verdict takes effect a moment after it is known.
func Settles(tb testing.TB, what string, client *http.Client, url string, want map[string]int) {
	tb.Helper()
	n := 0
	for _, share := range want {
		n += share
	}
	var got map[string]int
	if !Poll(Patience, func() bool {
		got = Tally(client, url, n)
		return maps.Equal(got, want)
	}) {
		tb.Fatalf("%s: answers by backend: got %v, want %v", what, got, want)
	}
	if got = Tally(client, url, n); !maps.Equal(got, want) {
		tb.Errorf("%s: answers by backend: got %v, want %v to last", what, got, want)
	}
}

// Answer is what a client got.
type Answer struct {
	Status int
	Body   string
	Header http.Header
	Proto  int
	Err    error
}

// String returns the error, or the status and the body.
func (a Answer) String() string {
	if a.Err != nil {
		return a.Err.Error()
	}
	return fmt.Sprintf("%d %q", a.Status, a.Body)
}

// Ask sends a request.
func Ask(client *http.Client, url string) Answer { return AskHost(client, url, "", nil) }

// AskHost sends a request to the site of a host.
func AskHost(client *http.Client, url, host string, header http.Header) Answer {
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return Answer{Err: err}
	}
	req.Host = host
	if header != nil {
		req.Header = header
	}
	return Do(client, req)
}

// AskPastReloads is Ask while there are so many reloads. At each, Caddy may drop a connection that
// has just been opened or used, whatever the policy. Then it asks again. It also returns how often.
func AskPastReloads(client *http.Client, url string, reloads int) (a Answer, dropped uint64) {
	for a = Ask(client, url); a.Status == 0 && dropped < uint64(reloads); dropped++ {
		a = Ask(client, url)
	}
	return a, dropped
}

// Do sends a request, and reads the whole answer.
func Do(client *http.Client, req *http.Request) Answer {
	resp, err := client.Do(req)
	if err != nil {
		return Answer{Err: err}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return Answer{resp.StatusCode, string(body), resp.Header, resp.ProtoMajor, err}
}

// Tally sends n requests, one after the other, and counts the answers by body;
// whatever is not a full answer of status 200 counts for "error".
func Tally(client *http.Client, url string, n int) map[string]int {
	count := make(map[string]int)
	for range n {
		if a := Ask(client, url); a.Err == nil && a.Status == http.StatusOK {
			count[a.Body]++
		} else {
			count["error"]++
		}
	}
	return count
}

// Shares fails the test unless the requests were answered as wanted.
func Shares(t testing.TB, what string, got, want map[string]int) {
	t.Helper()
	if !maps.Equal(got, want) {
		t.Errorf("%s: answers by backend: got %v, want %v", what, got, want)
	}
}

// Hammer sends n requests from as many clients at a time, and counts the
// answers by status; -1 is none.
func Hammer(client *http.Client, url string, clients int, n int64) map[int]int64 {
	var left atomic.Int64
	left.Store(n)
	count := make(map[int]int64)
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			own := make(map[int]int64)
			for left.Add(-1) >= 0 {
				if a := Ask(client, url); a.Err != nil {
					own[-1]++
				} else {
					own[a.Status]++
				}
			}
			mu.Lock()
			defer mu.Unlock()
			for status, n := range own {
				count[status] += n
			}
		})
	}
	wg.Wait()
	return count
}

// AskThrough asks again if there is no answer at all, once for each reload that there is
// meanwhile: Caddy itself may drop a connection that has just been opened.
func AskThrough(reloads int, client *http.Client, url string) func() Answer {
	return func() (a Answer) {
		for range reloads + 1 {
			if a = Ask(client, url); a.Status != 0 {
				break
			}
		}
		return a
	}
}
