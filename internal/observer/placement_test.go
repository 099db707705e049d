// SPDX-License-Identifier: Apache-2.0

package observer_test

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/caddy-alive/caddy-alive/internal/observer"
	"github.com/caddy-alive/caddy-alive/internal/slots"
)

// maxWhole is the largest body that is read at once.
const maxWhole = 64 << 10

// placing gives the requests of a watched upstream a slot and a cookie. The answers that
// handles reports are those that a route takes over.
func placing(tb testing.TB, a *slots.Address, cookie string, handles func(*http.Response) bool) (*observer.Placement, func(*watched, *observer.Hooks)) {
	tb.Helper()
	p := &observer.Placement{Cookie: cookie}
	if a != nil {
		if !a.Take(1) {
			tb.Fatal("there is no slot")
		}
		p.Hold(tb.Context(), a)
	}
	return p, func(_ *watched, h *observer.Hooks) {
		h.Placed = func(*http.Request) *observer.Placement { return p }
		h.Handles = handles
	}
}

func handled(*http.Response) bool    { return true }
func notHandled(*http.Response) bool { return false }

// openSlots opens an address that only this test has.
func openSlots(t *testing.T) *slots.Address {
	t.Helper()
	a, err := slots.Open(t.Name(), 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if n := a.InUse(); n != 0 {
			t.Errorf("%d slots in use in the end", n)
		}
		if err := a.Close(1); err != nil {
			t.Error(err)
		}
	})
	return a
}

// answerBody is the body of an answer.
type answerBody struct {
	io.Reader
	closed int
}

// Close counts.
func (b *answerBody) Close() error {
	b.closed++
	return nil
}

// answering is a transport that answers.
func answering(status int, length int64, body io.ReadCloser, check func()) function {
	return func(*http.Request) (*http.Response, error) {
		check()
		return &http.Response{StatusCode: status, ContentLength: length, Body: body, Header: http.Header{"Set-Cookie": {"app=1"}}}, nil
	}
}

// The slot is held during the round trip and while the answer is read, whether or not the
// upstream is observed. It is free as soon as the round trip has failed, or the transport has
// panicked.
func TestPlacement_HoldsItsSlot(t *testing.T) {
	lost := errors.New("lost")
	for _, off := range []bool{false, true} {
		for _, tc := range []struct {
			rule    string
			inner   function
			err     error
			panics  bool
			answers bool // with a body that is yet to be read
		}{
			{"it fails", func(*http.Request) (*http.Response, error) { return nil, lost }, lost, false, false},
			{"it panics", func(*http.Request) (*http.Response, error) { panic(lost) }, nil, true, false},
			{"an answer without a body", answering(200, 0, http.NoBody, func() {}), nil, false, false},
			{"an answer", answering(200, 4, &answerBody{Reader: strings.NewReader("text")}, func() {}), nil, false, true},
			{"an answer that accuses", answering(502, -1, &answerBody{Reader: strings.NewReader("text")}, func() {}), nil, false, true},
		} {
			t.Run(tc.rule, func(t *testing.T) {
				a := openSlots(t)
				_, place := placing(t, a, "", notHandled)
				w := watch(t, function(func(r *http.Request) (*http.Response, error) {
					if a.InUse() != 1 {
						t.Error("the slot is free during the round trip")
					}
					return tc.inner(r)
				}), place, func(w *watched, _ *observer.Hooks) { w.settings.Off = off })
				res, err := func() (res *http.Response, err error) {
					defer func() {
						if thrown := recover(); (thrown != nil) != tc.panics {
							t.Errorf("panicked with %v", thrown)
						}
					}()
					return w.RoundTrip(w.request(t, http.MethodGet, "http://app", nil))
				}()
				if !errors.Is(err, tc.err) || (res != nil) != (tc.err == nil && !tc.panics) {
					t.Fatalf("answer %v, error %v", res, err)
				}
				if tc.answers {
					if a.InUse() != 1 {
						t.Error("the slot is free before the body was read")
					}
					if text, err := io.ReadAll(res.Body); string(text) != "text" || err != nil {
						t.Errorf("read %q, error %v", text, err)
					}
				}
				if n := a.InUse(); n != 0 {
					t.Errorf("%d slots in use afterwards", n)
				}
				if res != nil {
					_ = res.Body.Close()
				}
			})
		}
	}
}

// A request that is sent again, for another upstream, has a slot for each round trip.
func TestPlacement_RetriesHaveTheirOwnSlots(t *testing.T) {
	a := openSlots(t)
	placed, place := placing(t, a, "", notHandled)
	fails := true
	w := watch(t, function(func(*http.Request) (*http.Response, error) {
		if a.InUse() != 1 {
			t.Errorf("%d slots in use during a round trip", a.InUse())
		}
		if fails {
			return nil, errors.New("lost")
		}
		return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody, Header: make(http.Header)}, nil
	}), place)
	r := w.request(t, http.MethodGet, "http://app", nil)
	for range 3 {
		if _, err := w.roundTrip(t, r); err == nil || a.InUse() != 0 {
			t.Fatalf("error %v, %d slots in use", err, a.InUse())
		}
		a.Take(1)
		placed.Hold(t.Context(), a)
	}
	fails = false
	if _, err := w.roundTrip(t, r); err != nil {
		t.Error(err)
	}
}

// The cookie is added to answers, beside those of the upstream, and to nothing else. A request
// with a cookie and no slot gets the body as it is.
func TestPlacement_CookieIsOfAnswers(t *testing.T) {
	body := &answerBody{Reader: strings.NewReader("text")}
	for _, tc := range []struct {
		rule, cookie string
		status       int
		want         []string
	}{
		{"an answer", "lb=a; Path=/", 200, []string{"app=1", "lb=a; Path=/"}},
		{"an error of the upstream", "lb=a; Path=/", 502, []string{"app=1", "lb=a; Path=/"}},
		{"a connection", "lb=a; Path=/", 101, []string{"app=1", "lb=a; Path=/"}},
		{"none", "", 200, []string{"app=1"}},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			_, place := placing(t, nil, tc.cookie, handled)
			w := watch(t, answering(tc.status, 4, body, func() {}), place)
			res, err := w.RoundTrip(w.request(t, http.MethodGet, "http://app", nil))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = res.Body.Close() }()
			if got := res.Header["Set-Cookie"]; !slices.Equal(got, tc.want) {
				t.Errorf("cookies %q, want %q", got, tc.want)
			}
			if res.Body != io.ReadCloser(body) {
				t.Errorf("the body is a %T", res.Body)
			}
		})
	}
	_, place := placing(t, nil, "lb=a; Path=/", handled)
	w := watch(t, function(func(*http.Request) (*http.Response, error) { return nil, errors.New("lost") }), place)
	if res, err := w.RoundTrip(w.request(t, http.MethodGet, "http://app", nil)); err == nil || res != nil {
		t.Errorf("answer %v, error %v", res, err)
	}
}

// Where a route of handle_response goes on before the body is closed, a body of known length up
// to 64 KiB is read at once, and the slot is free. An error while reading keeps its place in
// the body.
func TestPlacement_HandledAnswersAreReadAtOnce(t *testing.T) {
	broken := errors.New("broken")
	content := strings.Repeat("0123456789abcdef", maxWhole/16)
	text := func(n int) io.Reader { return strings.NewReader(content[:n]) }
	for _, tc := range []struct {
		rule    string
		status  int
		length  int64
		body    io.Reader
		handles func(*http.Response) bool
		atOnce  bool
		err     error
	}{
		{"a short one", 200, 5, text(5), handled, true, nil},
		{"an empty one", 200, 0, text(0), handled, true, nil},
		{"the largest", 200, maxWhole, text(maxWhole), handled, true, nil},
		{"a larger one", 200, maxWhole + 1, io.MultiReader(text(maxWhole), text(1)), handled, false, nil},
		{"one of unknown length", 200, -1, text(5), handled, false, nil},
		{"no route takes it", 200, 5, text(5), notHandled, false, nil},
		{"a connection", 101, 0, text(5), handled, false, nil},
		{"it breaks", 200, 9, io.MultiReader(text(5), iotest.ErrReader(broken)), handled, true, broken},
		{"it breaks at the start", 200, 9, iotest.ErrReader(broken), handled, true, broken},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			a := openSlots(t)
			_, place := placing(t, a, "", tc.handles)
			var copied bytes.Buffer
			body := &answerBody{Reader: io.TeeReader(tc.body, &copied)}
			w := watch(t, answering(tc.status, tc.length, body, func() {}), place)
			res, err := w.RoundTrip(w.request(t, http.MethodGet, "http://app", nil))
			if err != nil {
				t.Fatal(err)
			}
			if free := a.InUse() == 0; free != tc.atOnce || (body.closed == 1) != tc.atOnce {
				t.Errorf("the slot is free: %v, the body was closed %d times, want read at once: %v", free, body.closed, tc.atOnce)
			}
			if tc.atOnce && tc.err == nil && int64(copied.Len()) != tc.length {
				t.Errorf("%d bytes were read, want %d", copied.Len(), tc.length)
			}
			if res.ContentLength != tc.length {
				t.Errorf("the length is %d, want %d", res.ContentLength, tc.length)
			}
			got, err := io.ReadAll(res.Body)
			if !bytes.Equal(got, copied.Bytes()) || !errors.Is(err, tc.err) {
				t.Errorf("read %d bytes and the error %v, want %d bytes and %v", len(got), err, copied.Len(), tc.err)
			}
			if tc.err != nil {
				if _, again := res.Body.Read(make([]byte, 1)); !errors.Is(again, tc.err) {
					t.Errorf("the error is not there any more: %v", again)
				}
			}
			if err := res.Body.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}
