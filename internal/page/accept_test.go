// SPDX-License-Identifier: Apache-2.0

package page

import (
	"net/http"
	"testing"
)

// Clients that accept HTML by name get the page, all others the list.
func TestIsPreferred_ByName(t *testing.T) {
	for accept, want := range map[string]bool{
		"":                                  false,
		"*/*":                               false,
		"text/*":                            false,
		"application/json":                  false,
		"text/html":                         true,
		"text/html;q=0":                     false,
		"text/html;q=0.5":                   true,
		"text/html;q=x":                     false,
		"text/html;q=NaN":                   false,
		"text/html;q=Inf":                   false,
		"text/html;q=-1":                    false,
		"text/html;q=0.5, application/json": false,
		"application/json;q=0.5, text/html": true,
		"application/json, text/html":       true,
		"application/json;q=NaN, text/html;q=0.1": true,
		"TEXT/HTML":         true,
		"a, text/html":      true,
		"text/htmlx, */*":   false,
		";;;, text/html; x": false,
		"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8": true,
	} {
		if got := IsPreferred(http.Header{"Accept": {accept}}); got != want {
			t.Errorf("%q: got %v, want %v", accept, got, want)
		}
	}
}
