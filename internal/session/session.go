// SPDX-License-Identifier: Apache-2.0

// Package session binds clients to upstreams by a cookie. The cookie is that of Caddy's own
// selection policy cookie, so each understands what the other has set. The package does not
// know which upstreams get requests. It has no state and no locks.
package session

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"time"
)

// DefaultName is the name of the cookie if the config gives none.
const DefaultName = "lb"

// Cookie is the cookie that binds a client to an upstream.
type Cookie struct {
	Name   string
	Secret string        // with which values are made, empty if anyone may make one
	MaxAge time.Duration // how long clients keep it, 0 for as long as the browser runs
}

// Value returns the value for the upstream at a dial address. It does not tell the address:
// it is the HMAC-SHA256 of it, in hexadecimal digits.
func (c *Cookie) Value(dial string) string {
	sum := hmac.New(sha256.New, []byte(c.Secret))
	sum.Write([]byte(dial))
	return hex.EncodeToString(sum.Sum(nil))
}

// Of returns the value that a request has, empty if it has none that can be one. A browser
// sends several cookies of the name if an application has set one, too, for another path.
func (c *Cookie) Of(r *http.Request) string {
	for _, found := range r.CookiesNamed(c.Name) {
		if len(found.Value) == hex.EncodedLen(sha256.Size) {
			return found.Value
		}
	}
	return ""
}

// Header returns the field Set-Cookie with a value, for the answer to a request. Over TLS
// the cookie goes to TLS only, and works in frames of other sites.
func (c *Cookie) Header(r *http.Request, value string) string {
	cookie := http.Cookie{ //nolint:gosec // what is missing follows
		Name: c.Name, Value: value, Path: "/", MaxAge: int(c.MaxAge.Seconds()),
		HttpOnly: true, SameSite: http.SameSiteLaxMode,
	}
	if isSecure(r) {
		cookie.Secure, cookie.SameSite = true, http.SameSiteNoneMode
	}
	return cookie.String()
}

// isSecure reports whether the client uses TLS. When an upstream is selected, Caddy has
// replaced the field of a client that is no trusted proxy.
func isSecure(r *http.Request) bool {
	if r.TLS != nil {
		return true
	}
	values := r.Header.Values("X-Forwarded-Proto")
	return len(values) > 0 && values[len(values)-1] == "https"
}
