// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-alive/caddy-alive/internal/suggest"
	"github.com/caddy-alive/caddy-alive/probe"
)

// The names of options, in the order in which they are documented.
var (
	policyOptions = []string{"name", "check", "weight", "backup", "slow_start", "fail_open", "hold", "select"}
	commonOptions = probe.CommonOptions()
	globalOptions = []string{"fleet", "sync_interval"}
)

// kindOptions are options that belong to one kind of check, or to that kind above
// all, with the kind as it is written in an example.
var kindOptions = map[string]string{
	"uri": "http /healthz", "method": "http /healthz", "header": "http /healthz", "request_body": "http /healthz",
	"scheme": "http /healthz", "follow_redirects": "http /healthz", "status": "http /healthz", "drain_status": "http /healthz",
	"expect_header": "http /healthz", "expect_body": "http /healthz", "expression": "http /healthz", "max_size": "http /healthz",
	"tls_server_name": "http /healthz", "tls_insecure_skip_verify": "http /healthz", "fresh_connection": "http /healthz",
	"send": "tcp", "expect": "tcp", "authority": "grpc",
}

// coreChecks are the options of Caddy's own active health checks, with what to
// write in their place.
var coreChecks = map[string]string{
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

// proxyOptions are the other options of reverse_proxy.
var proxyOptions = []string{
	"to", "dynamic", "lb_policy", "lb_retries", "lb_try_duration", "lb_try_interval", "lb_retry_match",
	"max_fails", "fail_duration", "unhealthy_request_count", "unhealthy_status", "unhealthy_latency",
	"flush_interval", "request_buffers", "response_buffers", "stream_buffer_size", "stream_timeout", "stream_close_delay",
	"proxy_status_name", "trusted_proxies", "header_up", "header_down", "rewrite", "transport", "handle_response",
	"replace_status", "verbose_logs",
}

// errOption returns the error for an option that the block of lb_policy alive does
// not have. Beside a URI after the policy, that is given.
func errOption(d *caddyfile.Dispenser, uri string) error {
	option := d.Val()
	block := kindOptions[option]
	if slices.Contains(commonOptions, option) && block == "" {
		if block = "tcp"; uri != "" {
			block = "http " + uri
		}
		option = strings.TrimSpace(option + " " + strings.Join(d.RemainingArgs(), " "))
	} else if block != "" && uri != "" {
		block = "http " + uri
	}
	switch {
	case block != "" && uri != "":
		return d.Errf("'%s' is an option of a check; in place of the URI after lb_policy alive, write check %s { %s }", optionName(option), block, option)
	case block != "":
		return d.Errf("'%s' is an option of a check; write it in the block of one: check %s { %s }", optionName(option), block, option)
	}
	if hint := hintOf(option, "the block of lb_policy alive"); hint != "" {
		return d.Err(hint)
	}
	return d.Errf("unrecognized option '%s': lb_policy alive has %s%s", option, enumerate(policyOptions), didYouMean(option, slices.Concat(policyOptions, commonOptions)))
}

// optionName returns the first word of a line.
func optionName(line string) string {
	word, _, _ := strings.Cut(line, " ")
	return word
}

// hintOf says where an option of reverse_proxy belongs that does not belong here.
func hintOf(option, here string) string {
	if instead := coreChecks[option]; instead != "" {
		return fmt.Sprintf("'%s' is an option of Caddy's own health checks; lb_policy alive makes its own, so write %s", option, instead)
	}
	if slices.Contains(proxyOptions, option) {
		return fmt.Sprintf("'%s' is an option of reverse_proxy; write it beside lb_policy, outside of %s", option, here)
	}
	return ""
}

// explainOption replaces the error of a kind of check that does not know an option, where
// it is known where that option belongs. The tokens are the options that the kind
// was given.
func explainOption(err error, options []caddyfile.Token) error {
	for i, token := range options {
		if i > 0 && options[i-1].File == token.File && options[i-1].Line == token.Line {
			continue // not the first of its line
		}
		if !strings.HasPrefix(err.Error(), "unrecognized option '"+token.Text+"'") {
			continue
		}
		hint := hintOf(token.Text, "the block of a check")
		if slices.Contains(policyOptions, token.Text) {
			hint = fmt.Sprintf("'%s' is an option of lb_policy alive; write it beside the check, not in its block", token.Text)
		}
		if hint != "" {
			return errAt(token, "%s", hint)
		}
	}
	return err
}

// errAt returns an error with the place of a token.
func errAt(token caddyfile.Token, format string, args ...any) error {
	d := caddyfile.NewDispenser([]caddyfile.Token{token})
	d.Next()
	return d.Errf(format, args...)
}

// errUnknownKind is the error for a kind of check that this build does not have.
func errUnknownKind(kind string) error {
	hint := ""
	switch u, err := url.Parse(kind); {
	case strings.HasPrefix(kind, "/"):
		hint = "; a check begins with its kind: check http " + kind
	case err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != "":
		path := u.EscapedPath()
		if path == "" {
			path = "/"
		}
		hint = "; every upstream is asked, so a check has the path only: check http " + path
	case strings.EqualFold(kind, "https"):
		hint = "; a check http uses TLS where the proxy does, and elsewhere with the option scheme https"
	case kind == "exec":
		hint = "; it is built in with the package github.com/caddy-alive/caddy-alive/probe/exec"
	}
	if hint == "" {
		hint = didYouMean(kind, probeKinds())
	}
	return fmt.Errorf("unknown kind of check '%s'; this build has %s%s", kind, knownKinds(), hint)
}

// probeKinds returns the kinds of check that this build has.
func probeKinds() []string {
	modules := caddy.GetModules("alive.probes")
	kinds := make([]string, 0, len(modules))
	for _, info := range modules {
		kinds = append(kinds, info.ID.Name())
	}
	slices.Sort(kinds)
	return kinds
}

// knownKinds lists the kinds of check that this build has.
func knownKinds() string { return strings.Join(probeKinds(), ", ") }

// didYouMean asks for the known name that is close to one, if there is one.
func didYouMean(name string, known []string) string {
	if close := suggest.Close(name, known); close != "" && close != name {
		return fmt.Sprintf("; did you mean '%s'?", close)
	}
	return ""
}

// enumerate joins names in a sentence.
func enumerate(names []string) string {
	last := len(names) - 1
	return strings.Join(names[:last], ", ") + " and " + names[last]
}
