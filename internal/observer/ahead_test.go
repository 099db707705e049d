// SPDX-License-Identifier: Apache-2.0

package observer_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/slots"
	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// ask sends a request over HTTP/1, whose answer a route takes over.
func ask(t *testing.T, a *slots.Address, answer http.HandlerFunc) *http.Response {
	t.Helper()
	server := httptest.NewServer(answer)
	t.Cleanup(server.Close)
	inner := new(http.Transport)
	t.Cleanup(inner.CloseIdleConnections)
	_, place := placing(t, a, "", handled)
	w := watch(t, inner, place)
	res, err := w.RoundTrip(w.request(t, http.MethodGet, server.URL, nil))
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// wantFree waits until the slot is free.
func wantFree(t *testing.T, a *slots.Address) {
	t.Helper()
	testkit.Eventually(t, testkit.Patience, "the slot is free", func() bool { return a.InUse() == 0 })
}

// Where a route goes on before the body is closed, the slot is free when an upstream that does
// not tell the length has sent the end, although nothing has read the body. What is read later
// is the same, with its trailers.
func TestAhead_TheSlotIsFreeAtTheEnd(t *testing.T) {
	for _, announced := range []bool{true, false} {
		a := openSlots(t)
		res := ask(t, a, func(w http.ResponseWriter, _ *http.Request) {
			if announced {
				w.Header().Set("Trailer", "X-Sum")
			}
			_ = http.NewResponseController(w).Flush()
			_, _ = io.WriteString(w, strings.Repeat("text", 5000))
			w.Header().Set(map[bool]string{true: "X-Sum", false: http.TrailerPrefix + "X-Sum"}[announced], "7")
		})
		if _, has := res.Trailer["X-Sum"]; has != announced || res.Trailer.Get("X-Sum") != "" {
			t.Errorf("before the end: trailers %v", res.Trailer)
		}
		wantFree(t, a)
		got, err := io.ReadAll(res.Body)
		if string(got) != strings.Repeat("text", 5000) || err != nil {
			t.Errorf("read %d bytes, error %v", len(got), err)
		}
		if err := res.Body.Close(); err != nil || res.Trailer.Get("X-Sum") != "7" {
			t.Errorf("trailers %v, error %v", res.Trailer, err)
		}
	}
}

// Of a larger body the rest is read when it is asked for, and the slot is held until then.
func TestAhead_TheRestIsReadLater(t *testing.T) {
	a := openSlots(t)
	content := strings.Repeat("0123456789abcdef", maxWhole/16+1)
	res := ask(t, a, func(w http.ResponseWriter, _ *http.Request) {
		_ = http.NewResponseController(w).Flush()
		_, _ = io.WriteString(w, content)
	})
	defer func() { _ = res.Body.Close() }()
	if got, err := io.ReadAll(io.LimitReader(res.Body, maxWhole)); string(got) != content[:maxWhole] || err != nil {
		t.Fatalf("read %d bytes, error %v", len(got), err)
	}
	if a.InUse() != 1 {
		t.Error("the slot is free before the end")
	}
	if got, err := io.ReadAll(res.Body); string(got) != content[maxWhole:] || err != nil {
		t.Errorf("then %d bytes, error %v", len(got), err)
	}
	wantFree(t, a)
}

// A stream is passed on as it comes, and can be closed while nothing comes.
func TestAhead_StreamsGoOn(t *testing.T) {
	a := openSlots(t)
	res := ask(t, a, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "one")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	got := make([]byte, 8)
	if n, err := res.Body.Read(got); string(got[:n]) != "one" || err != nil {
		t.Errorf("read %q, error %v", got[:n], err)
	}
	if a.InUse() != 1 {
		t.Error("the slot is free while the upstream sends")
	}
	closed := make(chan error, 1)
	go func() { closed <- res.Body.Close() }()
	select {
	case <-closed:
	case <-time.After(testkit.Patience):
		t.Fatal("Close waits for the upstream")
	}
	wantFree(t, a)
}

// An error while reading ahead keeps its place in the body.
func TestAhead_ErrorsKeepTheirPlace(t *testing.T) {
	a := openSlots(t)
	res := ask(t, a, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "half")
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	wantFree(t, a)
	if got, err := io.ReadAll(res.Body); string(got) != "half" || err == nil {
		t.Errorf("read %q, error %v", got, err)
	}
	if err := res.Body.Close(); err != nil {
		t.Error(err)
	}
}
