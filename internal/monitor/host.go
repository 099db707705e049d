// SPDX-License-Identifier: Apache-2.0

package monitor

import (
	"strings"

	"golang.org/x/net/http/httpguts"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// ConstantHost returns the Host of all requests of a handler, if it sets a constant one and
// does nothing else with that header. It is empty otherwise.
func ConstantHost(h *reverseproxy.Handler) (host string) {
	if h.Headers == nil || h.Headers.Request == nil {
		return ""
	}
	isHost := func(name string) bool { return strings.EqualFold(name, "Host") }
	ops := h.Headers.Request
	for name := range ops.Add {
		if isHost(name) {
			return ""
		}
	}
	for _, pattern := range ops.Delete {
		if isHost(pattern) || matchesHost(strings.ToLower(pattern)) {
			return ""
		}
	}
	for name := range ops.Replace {
		if isHost(name) || name == "*" {
			return ""
		}
	}
	for name, values := range ops.Set {
		if !isHost(name) {
			continue
		}
		if host != "" || len(values) != 1 || strings.ContainsAny(values[0], "{}") || !httpguts.ValidHostHeader(values[0]) {
			return ""
		}
		host = values[0]
	}
	return host
}

// matchesHost reports whether a pattern for names of headers, in lower case, matches Host.
func matchesHost(pattern string) bool {
	inner, prefix := strings.CutSuffix(pattern, "*")
	inner, suffix := strings.CutPrefix(inner, "*")
	switch {
	case prefix && suffix:
		return strings.Contains("host", inner)
	case prefix:
		return strings.HasPrefix("host", inner)
	case suffix:
		return strings.HasSuffix("host", inner)
	}
	return false
}
