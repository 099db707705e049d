// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"net/http"
	"strings"

	"github.com/dustin/go-humanize"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-alive/caddy-alive/internal/grammar"
	"github.com/caddy-alive/caddy-alive/internal/limits"
	"github.com/caddy-alive/caddy-alive/internal/placeholder"
	"github.com/caddy-alive/caddy-alive/internal/redact"
)

// unmarshalRequestOption reads the option that d is at, if it belongs to the request.
func unmarshalRequestOption(h *HTTP, d *caddyfile.Dispenser, option string) (known bool, err error) {
	switch option {
	case "method":
		if !d.AllArgs(&h.Method) {
			return true, d.Err("method takes one HTTP method, like HEAD")
		}
		h.Method = standardMethod(h.Method)
		if !redact.HasPlaceholder(h.Method) {
			err = grammar.At(d, checkMethod(h.Method, h.Method))
		}

	case "header":
		var name, value string
		if !d.AllArgs(&name, &value) {
			return true, d.Err("header takes a name and a value, like header Host app.internal")
		}
		if _, given := h.Header["Host"]; given && strings.EqualFold(name, "Host") {
			return true, d.WrapErr(errHostTwice)
		}
		if h.Header == nil {
			h.Header = make(http.Header)
		}
		h.Header.Add(name, value)
		if err := placeholder.Check("header "+name, value); err != nil {
			return true, d.WrapErr(err)
		}
		if redact.HasPlaceholder(value) {
			value = ""
		}
		err = grammar.At(d, checkHeader(name, value, value))

	case "request_body":
		if !d.AllArgs(&h.RequestBody) || h.RequestBody == "" {
			return true, d.Err("request_body takes one text; put it into quotes if it has spaces")
		}
		if err = placeholder.Check(option, h.RequestBody); err == nil {
			err = checkRequestBody(h.RequestBody)
		}
		err = grammar.At(d, err)

	case "scheme":
		if !d.AllArgs(&h.Scheme) || h.Scheme == "" {
			return true, d.Err("scheme takes http or https")
		}
		if err = checkScheme(h.Scheme); err == nil {
			err = checkVersion(h.Version, h.Scheme)
		}
		err = grammar.At(d, err)

	case "version":
		if !d.AllArgs(&h.Version) || h.Version == "" {
			return true, d.Err("version takes 1.1, 2 or h2c")
		}
		err = grammar.At(d, checkVersion(h.Version, h.Scheme))

	case "follow_redirects":
		h.FollowRedirects = true
		err = grammar.NoArg(d, option)

	case "fresh_connection": // this is the default
		h.FreshConnection = true
		err = grammar.NoArg(d, option)

	default:
		return false, nil
	}
	return true, err
}

// unmarshalAnswerOption reads the option that d is at, if it belongs to the answer.
func unmarshalAnswerOption(h *HTTP, d *caddyfile.Dispenser, option string) (known bool, err error) {
	switch option {
	case "status":
		h.Status, err = statusArgs(d)

	case "drain_status":
		h.DrainStatus, err = statusArgs(d)

	case "expect_header":
		var name, value string
		if !d.AllArgs(&name, &value) {
			return true, d.Err("expect_header takes a name and a regular expression, like expect_header Content-Type ^application/json")
		}
		name = http.CanonicalHeaderKey(name)
		if _, given := h.ExpectHeader[name]; given {
			return true, d.WrapErr(grammar.GivenTwice("expect_header " + name))
		}
		if h.ExpectHeader == nil {
			h.ExpectHeader = make(map[string]string)
		}
		h.ExpectHeader[name] = value
		if err := checkFieldName(name); err != nil {
			return true, d.Errf("expect_header: %v", err)
		}
		_, err = compile(option+" "+name, value)
		err = grammar.At(d, err)

	case "expect_body":
		if !d.AllArgs(&h.ExpectBody) {
			return true, d.Err("expect_body takes one regular expression; put it into quotes if it has spaces")
		}
		_, err = compile(option, h.ExpectBody)
		err = grammar.At(d, err)

	case "expression":
		if !d.AllArgs(&h.Expression) || h.Expression == "" {
			return true, d.Err("expression takes one CEL expression, in quotes, like \"json.db == 'ok'\"")
		}
		if !redact.HasPlaceholder(h.Expression) { // with placeholders it is compiled when the config is loaded
			h.expression, err = compileExpression(h.Expression, h.Expression)
			err = grammar.At(d, err)
		}

	case "max_size":
		var text string
		if !d.AllArgs(&text) {
			return true, d.Err("max_size takes one " + sizeRange)
		}
		size, invalid := humanize.ParseBytes(text)
		if invalid != nil || size > maxMaxSize {
			size = 0 // out of range
		}
		h.MaxSize = int64(size)
		if invalid := checkMaxSize(h.MaxSize); invalid != nil {
			err = d.Errf("%v; got '%s'", invalid, text)
		}

	default:
		return false, nil
	}
	return true, err
}

// statusArgs reads the arguments of the option that d is at: status codes.
func statusArgs(d *caddyfile.Dispenser) ([]string, error) {
	option := d.Val()
	list := d.RemainingArgs()
	if len(list) == 0 {
		return nil, d.Errf("%s takes codes, classes and ranges, like 204 2xx 200-399", option)
	}
	for _, text := range list {
		if _, err := limits.ParseStatus(option, text); err != nil && !redact.HasPlaceholder(text) {
			return nil, d.WrapErr(err)
		}
	}
	return list, nil
}
