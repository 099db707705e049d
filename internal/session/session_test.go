// SPDX-License-Identifier: Apache-2.0

package session

import (
	"net/http"
	"testing"
)

// The value is the first one that can be one, so that a cookie of the same name that an
// application sets for another path does not make a client a new one at each request.
func TestCookie_SkipsWhatCannotBeAValue(t *testing.T) {
	c := &Cookie{Name: "lb", Secret: "secret"}
	a, b := c.Value("a:80"), c.Value("b:80")
	for sent, want := range map[string]string{
		"":                             "",
		"lb=":                          "",
		"lb=" + a[1:]:                  "",
		"lb=" + a:                      a,
		`lb="` + a + `"`:               a,
		"lb=app; lb=" + a:              a,
		"lb=app; x=1; lb=; lb=" + a:    a,
		"lb=" + a + "; lb=app":         a,
		"lb=" + b + "; lb=" + a:        b,
		"LB=" + a + "; lbx=" + a:       "",
		"x=" + a + "; ;;lb=" + b + ";": b,
	} {
		r := &http.Request{Header: http.Header{"Cookie": {sent}}}
		if got := c.Of(r); got != want {
			t.Errorf("%q: got %q, want %q", sent, got, want)
		}
	}
}
