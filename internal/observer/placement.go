// SPDX-License-Identifier: Apache-2.0

package observer

import (
	"bytes"
	"io"
	"net/http"
	"net/url"

	"github.com/caddy-alive/caddy-alive/internal/slots"
)

// maxWhole is how much of the body of an answer is read before it is asked for, where a route
// of the handler goes on before the body is closed: all of it at once if its length is known,
// else as it comes.
const maxWhole = 64 << 10

// Placement is what goes along with a request from its selection to its answer.
type Placement struct {
	// URL tells apart the requests that share their placeholders, as in pool.Tried.
	URL *url.URL
	// Cookie is the field Set-Cookie that the answer gets, empty for none.
	Cookie string
	// Grant is the slot of the request, if it has one.
	slots.Grant
}

// send calls a function that sends a request with a placement.
func (t *Transport) send(p *Placement, roundTrip func() (*http.Response, error)) (res *http.Response, err error) {
	p.Begin()
	answered := false
	defer func() {
		if !answered { // also if the transport has panicked
			p.End()
		}
	}()
	if res, err = roundTrip(); err != nil {
		return res, err
	}
	answered = true
	if p.Cookie != "" {
		res.Header.Add("Set-Cookie", p.Cookie)
	}
	if p.Held() && t.hooks.Handles(res) && readWhole(res) {
		p.End()
		return res, nil
	}
	p.Answered(res)
	if t.known && p.Held() && res.ContentLength < 0 && res.StatusCode != http.StatusSwitchingProtocols && t.hooks.Handles(res) {
		return readAhead(res), nil
	}
	return res, nil
}

// readWhole reads the body of an answer if its length is known and small. It reports whether
// it has: what was read is the body then, with the error that ended it.
func readWhole(res *http.Response) bool {
	if res.ContentLength < 0 || res.ContentLength > maxWhole || res.StatusCode == http.StatusSwitchingProtocols {
		return false
	}
	read, err := io.ReadAll(res.Body)
	_ = res.Body.Close()
	whole := io.Reader(bytes.NewReader(read))
	if err != nil {
		whole = io.MultiReader(whole, failing{err})
	}
	res.Body = io.NopCloser(whole)
	return true
}

// failing is a reader that has failed.
type failing struct{ err error }

// Read returns the error.
func (f failing) Read([]byte) (int, error) { return 0, f.err }
