// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"maps"
	"net/http"
	"slices"
	"strings"
)

// headerLabel returns the part of a label that tells header fields apart: the value of
// Host, and only the names of the others, because their values may be secret.
func headerLabel(header http.Header) string {
	label := ""
	var names []string
	for _, name := range slices.Sorted(maps.Keys(header)) {
		switch canonical := http.CanonicalHeaderKey(name); {
		case len(header[name]) == 0:
		case canonical == "Host":
			label = " Host " + header[name][0]
		case !slices.Contains(names, canonical):
			names = append(names, canonical)
		}
	}
	if len(names) > 0 {
		label += " header " + strings.Join(names, " header ")
	}
	return label
}

// label returns the part of a label that tells TLS settings apart.
func (o *TLSOptions) label() string {
	if o.TLSServerName == "" {
		return ""
	}
	return " tls_server_name " + o.TLSServerName
}
