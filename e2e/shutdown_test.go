// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

// A request that is held at a cold start does not delay the end of the process: it goes
// on without a verdict.
func TestShutdown_HeldRequestGoesOn(t *testing.T) {
	const hold = 10 * time.Second
	probed := make(chan struct{}, 16)
	end := make(chan struct{})
	// requests are answered at once, probes never are
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/healthz" {
			probed <- struct{}{}
			<-end
			return
		}
		fmt.Fprint(w, "answered")
	}))
	t.Cleanup(upstream.Close)
	t.Cleanup(func() { close(end) })
	c := startCaddy(t, t.TempDir(), "", fmt.Sprintf(`reverse_proxy %s {
		lb_policy alive {
			check http /healthz {
				timeout 20s
			}
			hold %s
		}
	}`, upstream.Listener.Addr(), hold))
	<-probed // there is no verdict, and none will come

	answer := make(chan string, 1)
	go func() {
		status, body := ask(c)
		answer <- fmt.Sprint(status, " ", body)
	}()
	eventually(t, "the request is held", func() bool { return metric(c, "caddy_alive_held_requests_total") == "1" })
	began := time.Now()
	c.stop()
	if took := time.Since(began); took > hold/2 {
		t.Errorf("the process took %s to end, want less than %s", took, hold/2)
	}
	select {
	case got := <-answer:
		if got != "200 answered" {
			t.Errorf("the held request got %q, want an answer", got)
		}
	case <-time.After(patience):
		t.Error("the held request got no answer")
	}
}

// Requests in a queue do not delay the end of the process: they are refused at once, while those
// that have a place are answered.
func TestShutdown_QueueEnds(t *testing.T) {
	const timeout = time.Minute
	arrived, end := make(chan struct{}, 16), make(chan struct{})
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/healthz" {
			arrived <- struct{}{}
			<-end
		}
		fmt.Fprint(w, "answered")
	}))
	t.Cleanup(upstream.Close)
	release := sync.OnceFunc(func() { close(end) })
	t.Cleanup(release)
	c := startCaddy(t, t.TempDir(), "", fmt.Sprintf(`reverse_proxy %s {
		lb_policy alive /healthz {
			max_requests 1
			queue %s
		}
	}`, upstream.Listener.Addr(), timeout))
	const waiting = 10
	answers := make(chan int, 1+waiting)
	for range 1 + waiting {
		go func() {
			status, _ := ask(c)
			answers <- status
		}()
	}
	<-arrived
	eventually(t, "the others wait", func() bool { return metric(c, "caddy_alive_queue_length") == fmt.Sprint(waiting) })
	began := time.Now()
	ended := make(chan struct{})
	go func() {
		c.stop()
		close(ended)
	}()
	for i := range waiting {
		select {
		case status := <-answers:
			if status != http.StatusServiceUnavailable {
				t.Errorf("a request that waits got status %d, want 503", status)
			}
		case <-time.After(timeout / 4):
			t.Fatalf("%d of %d requests that wait were answered", i, waiting)
		}
	}
	t.Logf("all were refused after %v", time.Since(began))
	release()
	if status := <-answers; status != http.StatusOK {
		t.Errorf("the request with a place got status %d, want 200", status)
	}
	<-ended
}

// ask sends a request, and returns the status and the body of the answer. The status is 0 if
// there is none.
func ask(c *instance) (status int, body string) {
	response, err := http.Get("http://" + c.site)
	if err != nil {
		return 0, err.Error()
	}
	defer response.Body.Close()
	text, _ := io.ReadAll(response.Body)
	return response.StatusCode, string(text)
}

// metric returns the value of the one series of a metric, "" if there is none.
func metric(c *instance, name string) string {
	response, err := http.Get("http://" + c.admin + "/metrics")
	if err != nil {
		return ""
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, name+"{") {
			_, value, _ := strings.Cut(strings.TrimSpace(line), "} ")
			return value
		}
	}
	return ""
}
