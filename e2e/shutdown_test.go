// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
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
		response, err := http.Get("http://" + c.site)
		if err != nil {
			answer <- err.Error()
			return
		}
		defer response.Body.Close()
		body, _ := io.ReadAll(response.Body)
		answer <- string(body)
	}()
	eventually(t, "the request is held", func() bool {
		response, err := http.Get("http://" + c.admin + "/metrics")
		if err != nil {
			return false
		}
		defer response.Body.Close()
		text, err := io.ReadAll(response.Body)
		return err == nil && heldRequests(string(text)) == "1"
	})
	began := time.Now()
	c.stop()
	if took := time.Since(began); took > hold/2 {
		t.Errorf("the process took %s to end, want less than %s", took, hold/2)
	}
	select {
	case got := <-answer:
		if got != "answered" {
			t.Errorf("the held request got %q, want an answer", got)
		}
	case <-time.After(patience):
		t.Error("the held request got no answer")
	}
}

// heldRequests returns the value of the one series of that metric.
func heldRequests(metrics string) string {
	for line := range strings.Lines(metrics) {
		if strings.HasPrefix(line, "caddy_alive_held_requests_total{") {
			_, value, _ := strings.Cut(strings.TrimSpace(line), "} ")
			return value
		}
	}
	return ""
}
