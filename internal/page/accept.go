// SPDX-License-Identifier: Apache-2.0

package page

import (
	"mime"
	"net/http"
	"strconv"
	"strings"
)

// IsPreferred reports whether a client accepts HTML by name, and prefers it to JSON or
// accepts both alike. A client that accepts anything may be a program.
func IsPreferred(header http.Header) bool {
	var html, asJSON float64
	for accepted := range strings.SplitSeq(strings.Join(header.Values("Accept"), ","), ",") {
		kind, params, err := mime.ParseMediaType(accepted)
		if err != nil {
			continue
		}
		quality := 1.0
		if q, given := params["q"]; given {
			if quality, err = strconv.ParseFloat(q, 64); err != nil || !(quality >= 0 && quality <= 1) {
				continue
			}
		}
		switch kind {
		case "text/html", "application/xhtml+xml":
			html = max(html, quality)
		case "application/json":
			asJSON = max(asJSON, quality)
		}
	}
	return html > 0 && html >= asJSON
}
