// SPDX-License-Identifier: Apache-2.0

// Package statuspage is the handler alive_status: the status page, or the list as JSON. It
// must not know how they are made: internal/balancer has both. It has no state and no
// locks.
package statuspage

import (
	"errors"
	"net/http"
	"os"
	"runtime/debug"
	"slices"
	"sync"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/encode"

	"github.com/caddy-alive/caddy-alive/internal/balancer"
	"github.com/caddy-alive/caddy-alive/internal/page"
)

func init() {
	caddy.RegisterModule(Status{})
	httpcaddyfile.RegisterHandlerDirective("alive_status", parseStatus)
	httpcaddyfile.RegisterDirectiveOrder("alive_status", httpcaddyfile.Before, "metrics")
}

// Status is a page that shows what all `alive` selection policies of the config
// balance over: status, mode, share of traffic and the last results of each upstream,
// and why it gets requests or none. Clients that do not ask for HTML by name get the
// same list as JSON. It changes nothing, but it shows the addresses of upstreams, so it
// should not be public.
type Status struct{}

// CaddyModule returns the Caddy module information.
func (Status) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.handlers.alive_status",
		New: func() caddy.Module { return new(Status) },
	}
}

// parseStatus reads the directive. Syntax:
//
//	alive_status [<matcher>]
func parseStatus(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
	h.Next() // consume the directive's name
	if h.NextArg() {
		return nil, h.ArgErr()
	}
	if h.NextBlock(0) {
		return nil, h.Err("alive_status has no options")
	}
	return Status{}, nil
}

// ServeHTTP answers with the page, or with JSON.
func (Status) ServeHTTP(w http.ResponseWriter, r *http.Request, _ caddyhttp.Handler) error {
	header := w.Header()
	header.Set("Vary", "Accept, Accept-Encoding")
	header.Set("Cache-Control", "no-store")
	header.Set("X-Content-Type-Options", "nosniff")
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		header.Set("Allow", "GET, HEAD")
		return caddyhttp.Error(http.StatusMethodNotAllowed, errors.New("the status page can only be read"))
	}
	render := listJSON
	if page.IsPreferred(r.Header) {
		header.Set("Content-Type", "text/html; charset=utf-8")
		header.Set("Content-Security-Policy", page.Policy)
		header.Set("Referrer-Policy", "no-referrer")
		header.Set("X-Frame-Options", "DENY")
		render = statusPage
	} else {
		header.Set("Content-Type", "application/json")
	}
	if r.Method == http.MethodHead {
		return nil
	}
	text, err := render(header, r)
	if err != nil {
		return err
	}
	_, err = w.Write(text)
	return err
}

// listJSON returns the list.
func listJSON(http.Header, *http.Request) ([]byte, error) { return balancer.CurrentListing().JSON() }

// statusPage returns the page that a request asks for, compressed if the client takes that: it
// is compressed once for all viewers.
func statusPage(header http.Header, r *http.Request) ([]byte, error) {
	p, err := balancer.CurrentListing().Page(thisSite(), page.ParseFilter(r.URL.Query()))
	if err != nil {
		return nil, err
	}
	if slices.Contains(encode.AcceptedEncodings(r, []string{"gzip"}), "gzip") {
		header.Set("Content-Encoding", "gzip")
		return p.Gzip, nil
	}
	return p.Plain, nil
}

// modulePath is the path of the Go module that this package is part of.
const modulePath = "github.com/caddy-alive/caddy-alive"

// thisSite says which Caddy this is.
var thisSite = sync.OnceValue(func() page.Site {
	host, _ := os.Hostname() // without a name the page has none
	version, _ := caddy.Version()
	return page.Site{Host: host, Caddy: version, Module: moduleVersion()}
})

// moduleVersion returns the version of this module in this build, empty if it is not known.
func moduleVersion() string {
	info, known := debug.ReadBuildInfo()
	if !known {
		return ""
	}
	for _, m := range append(info.Deps, &info.Main) {
		if m.Path != modulePath {
			continue
		}
		if m.Replace != nil && m.Replace.Version != "" {
			m = m.Replace
		}
		if m.Version == "(devel)" || m.Version == "v0.0.0" {
			return "in development"
		}
		return m.Version
	}
	return ""
}

// Interface guard
var _ caddyhttp.MiddlewareHandler = Status{}
