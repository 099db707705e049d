// SPDX-License-Identifier: Apache-2.0

package suggest

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
)

// The names of options, in the order in which they are documented.
var (
	// PolicyOptions are those of lb_policy alive.
	PolicyOptions = []string{"name", "check", "weight", "backup", "spill", "slow_start", "fail_open", "hold", "retries", "observe", "eject", "max_requests", "queue", "sticky", "stale", "select"}
	// CheckOptions are those of every check, whatever its kind.
	CheckOptions = []string{
		"name", "interval", "fast_interval", "down_interval", "timeout", "passes", "fails", "jitter",
		"port", "address", "proxy_protocol", "keep_connection",
	}
	// ObserveOptions, EjectOptions and StickyOptions are those in the blocks of these
	// options of lb_policy alive.
	ObserveOptions = []string{"status", "stall"}
	EjectOptions   = []string{"for", "share"}
	StickyOptions  = []string{"secret", "max_age"}
	// GlobalOptions are those of the global option alive.
	GlobalOptions = []string{"fleet", "member", "sync_interval", "probers"}
)

// KindOptions are options that belong to one kind of check, or to that kind above
// all, with the kind as it is written in an example.
var KindOptions = map[string]string{
	"uri": "http /healthz", "method": "http /healthz", "header": "http /healthz", "request_body": "http /healthz",
	"scheme": "http /healthz", "version": "http /healthz", "follow_redirects": "http /healthz", "status": "http /healthz", "drain_status": "http /healthz",
	"expect_header": "http /healthz", "expect_body": "http /healthz", "expression": "http /healthz", "max_size": "http /healthz",
	"tls_server_name": "http /healthz", "tls_insecure_skip_verify": "http /healthz", "fresh_connection": "http /healthz",
	"send": "tcp", "expect": "tcp", "authority": "grpc",
}

// CoreChecks are the options of Caddy's own active health checks, with what to
// write in their place.
var CoreChecks = map[string]string{
	"health_uri":              "check http <uri>",
	"health_path":             "check http <uri>",
	"health_upstream":         "address in the block of a check",
	"health_port":             "port in the block of a check",
	"health_headers":          "header in the block of check http",
	"health_method":           "method in the block of check http",
	"health_request_body":     "request_body in the block of check http",
	"health_interval":         "interval in the block of a check",
	"health_timeout":          "timeout in the block of a check",
	"health_status":           "status in the block of check http",
	"health_body":             "expect_body in the block of check http",
	"health_follow_redirects": "follow_redirects in the block of check http",
	"health_passes":           "passes in the block of a check",
	"health_fails":            "fails in the block of a check",
}

// ProxyOptions are the other options of reverse_proxy.
var ProxyOptions = []string{
	"to", "dynamic", "lb_policy", "lb_retries", "lb_try_duration", "lb_try_interval", "lb_retry_match",
	"max_fails", "fail_duration", "unhealthy_request_count", "unhealthy_status", "unhealthy_latency",
	"flush_interval", "request_buffers", "response_buffers", "stream_buffer_size", "stream_timeout", "stream_close_delay",
	"proxy_status_name", "trusted_proxies", "header_up", "header_down", "rewrite", "transport", "handle_response",
	"replace_status", "verbose_logs",
}

// InPolicy says what to write in place of an option that the block of lb_policy alive
// does not have, given with its arguments. The URI is the one after the policy, empty if
// there is none.
func InPolicy(option string, args []string, uri string) string {
	kind, example := KindOptions[option], option
	if slices.Contains(CheckOptions, option) && kind == "" {
		if kind = "tcp"; uri != "" {
			kind = "http " + uri
		}
		example = strings.Join(append([]string{option}, args...), " ")
	} else if kind != "" && uri != "" {
		kind = "http " + uri
	}
	switch {
	case kind != "" && uri != "":
		return fmt.Sprintf("'%s' is an option of a check; in place of the URI after lb_policy alive, write check %s { %s }", option, kind, example)
	case kind != "":
		return fmt.Sprintf("'%s' is an option of a check; write it in the block of one: check %s { %s }", option, kind, example)
	}
	switch {
	case option == "{":
		return "a block cannot begin here: it begins on the line of its option, and of the options of lb_policy alive only check, observe, eject, sticky and select have one"
	case slices.Contains(ObserveOptions, option):
		return fmt.Sprintf("'%s' is an option of observe; write it in its block: observe { %[1]s }", option)
	case slices.Contains(EjectOptions, option):
		return fmt.Sprintf("'%s' is an option of eject; write it in its block: eject 5 { %[1]s }", option)
	case slices.Contains(StickyOptions, option):
		return fmt.Sprintf("'%s' is an option of sticky; write it in its block: sticky { %[1]s }", option)
	}
	if hint := ofProxy(option, "the block of lb_policy alive"); hint != "" {
		return hint
	}
	return fmt.Sprintf("unrecognized option '%s': lb_policy alive has %s%s",
		option, Enumerate(PolicyOptions), DidYouMean(option, slices.Concat(PolicyOptions, CheckOptions)))
}

// InCheck says where an option belongs that is in the block of a check and does not
// belong there. It is empty if that is not known.
func InCheck(option string) string {
	if slices.Contains(PolicyOptions, option) {
		return fmt.Sprintf("'%s' is an option of lb_policy alive; write it beside the check, not in its block", option)
	}
	return ofProxy(option, "the block of a check")
}

// InBlock is the error for an option that the block of an option of lb_policy alive does
// not have, given with those that it has.
func InBlock(block, option string, own []string) string {
	if slices.Contains(PolicyOptions, option) {
		return fmt.Sprintf("'%s' is an option of lb_policy alive; write it beside %s, not in its block", option, block)
	}
	if hint := ofProxy(option, "the block of "+block); hint != "" {
		return hint
	}
	return fmt.Sprintf("unrecognized option '%s': %s has %s%s", option, block, Enumerate(own), DidYouMean(option, own))
}

// ofProxy says where an option of reverse_proxy belongs that is in a block. It is empty
// if the option is none.
func ofProxy(option, block string) string {
	if instead := CoreChecks[option]; instead != "" {
		return fmt.Sprintf("'%s' is an option of Caddy's own health checks; lb_policy alive makes its own, so write %s", option, instead)
	}
	if slices.Contains(ProxyOptions, option) {
		return fmt.Sprintf("'%s' is an option of reverse_proxy; write it beside lb_policy, outside of %s", option, block)
	}
	return ""
}

// InGlobal is the error for an option that the global option alive does not have.
func InGlobal(option string) string {
	return fmt.Sprintf("unrecognized option '%s': alive has %s%s", option, Enumerate(GlobalOptions), DidYouMean(option, GlobalOptions))
}

// InKind is the error for an option that a kind of check does not have: it names the
// options of every check, and those of the kind. The check is shown as given, such as "an
// http check".
func InKind(option, check string, own []string) string {
	has := "no other"
	if len(own) > 0 {
		has = Enumerate(own)
	}
	return fmt.Sprintf("unrecognized option '%s': besides the options of every check (%s), %s has %s%s",
		option, strings.Join(CheckOptions, ", "), check, has, DidYouMean(option, slices.Concat(own, CheckOptions)))
}

// Kind returns the end of an error about a kind of check that is none of the known ones.
func Kind(kind string, known []string) string {
	switch u, err := url.Parse(kind); {
	case strings.HasPrefix(kind, "/"):
		return "; a check begins with its kind: check http " + kind
	case err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != "":
		path := u.EscapedPath()
		if path == "" {
			path = "/"
		}
		return "; every upstream is asked, so a check has the path only: check http " + path
	case strings.EqualFold(kind, "https"):
		return "; a check http uses TLS where the proxy does, and elsewhere with the option scheme https"
	case kind == "exec":
		return "; it is built in with the package github.com/caddy-alive/caddy-alive/probe/exec"
	}
	return DidYouMean(kind, known)
}
