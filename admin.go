// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-alive/caddy-alive/internal/apierror"
	"github.com/caddy-alive/caddy-alive/internal/balancer"
	"github.com/caddy-alive/caddy-alive/internal/grammar"
	"github.com/caddy-alive/caddy-alive/internal/limits"
	"github.com/caddy-alive/caddy-alive/internal/monitor"
	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/suggest"
	"github.com/caddy-alive/caddy-alive/internal/view"
)

func init() { caddy.RegisterModule(Admin{}) }

// maxBody is the longest body of a request, in bytes.
const maxBody = 64 << 10

// Admin is the part of Caddy's admin API that shows upstreams and changes them. It has
// no state: it answers for the newest started config.
//
//   - `GET /alive/upstreams[?pool=…][&upstream=…]` lists upstreams by pool.
//   - `PATCH /alive/upstreams?upstream=…[&pool=…]` with `{"mode": "ready"}`, `drain`
//     or `maintenance`, and/or `{"weight": 3}`, sets what applies from now on; null
//     removes it. With `{"mode": "drain", "rebind": true}`, clients that are bound to the
//     upstream move.
//   - `GET /alive/pools[?pool=…]` lists pools: how many upstreams serve, and how many
//     requests wait.
//   - `POST /alive/check?upstream=…` probes at once.
type Admin struct{}

// CaddyModule returns the Caddy module information.
func (Admin) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "admin.api.alive",
		New: func() caddy.Module { return new(Admin) },
	}
}

// Routes returns the routes of the API.
func (a Admin) Routes() []caddy.AdminRoute {
	return []caddy.AdminRoute{
		{Pattern: "/alive/upstreams", Handler: apierror.Answer(a.upstreams)},
		{Pattern: "/alive/pools", Handler: apierror.Answer(a.pools)},
		{Pattern: "/alive/check", Handler: apierror.Answer(a.check)},
	}
}

// errorKind is a kind of error: the code by which programs tell it, and the status of
// the answer.
type errorKind struct {
	code   string
	status int
}

var (
	methodNotAllowed   = errorKind{"method_not_allowed", http.StatusMethodNotAllowed}
	invalidQuery       = errorKind{"invalid_query", http.StatusBadRequest}
	unknownParameter   = errorKind{"unknown_parameter", http.StatusBadRequest}
	duplicateParameter = errorKind{"duplicate_parameter", http.StatusBadRequest}
	missingUpstream    = errorKind{"missing_upstream", http.StatusBadRequest}
	unknownUpstream    = errorKind{"unknown_upstream", http.StatusNotFound}
	unknownPool        = errorKind{"unknown_pool", http.StatusNotFound}
	upstreamGone       = errorKind{"upstream_gone", http.StatusNotFound}
	poolGone           = errorKind{"pool_gone", http.StatusBadRequest}
	ambiguousPool      = errorKind{"ambiguous_pool", http.StatusConflict}
	invalidBody        = errorKind{"invalid_body", http.StatusBadRequest}
	bodyTooLarge       = errorKind{"body_too_large", http.StatusRequestEntityTooLarge}
	nothingToChange    = errorKind{"nothing_to_change", http.StatusBadRequest}
	invalidMode        = errorKind{"invalid_mode", http.StatusBadRequest}
	invalidRebind      = errorKind{"invalid_rebind", http.StatusBadRequest}
	invalidWeight      = errorKind{"invalid_weight", http.StatusBadRequest}
	notChecked         = errorKind{"not_checked", http.StatusBadRequest}
	checkFailed        = errorKind{"check_failed", http.StatusServiceUnavailable}
)

// errorf returns an error of that kind, which says what is wrong, and what is allowed.
func (k errorKind) errorf(format string, args ...any) error {
	return apierror.New(k.code, k.status, format, args...)
}

func errMethod(w http.ResponseWriter, allowed string) error {
	w.Header().Set("Allow", allowed)
	return methodNotAllowed.errorf("method not allowed; allowed: %s", allowed)
}

// upstreams lists upstreams, or changes one.
func (Admin) upstreams(w http.ResponseWriter, r *http.Request) error {
	only, err := parseFilter(r, "pool", "upstream")
	if err != nil {
		return err
	}
	switch r.Method {
	case http.MethodHead:
		w.Header().Set("Content-Type", "application/json")
		return nil
	case http.MethodGet:
		if only.Upstream == "" {
			return writeList(w, only.Pool)
		}
	case http.MethodPatch:
		changed, err := patch(w, r, only)
		if err != nil {
			return err
		}
		only = changed
	default:
		return errMethod(w, "GET, HEAD, PATCH")
	}
	return writeRows(w, balancer.List(only))
}

// pools lists pools.
func (Admin) pools(w http.ResponseWriter, r *http.Request) error {
	only, err := parseFilter(r, "pool")
	if err != nil {
		return err
	}
	switch r.Method {
	case http.MethodHead:
		w.Header().Set("Content-Type", "application/json")
		return nil
	case http.MethodGet:
	default:
		return errMethod(w, "GET, HEAD")
	}
	list := balancer.CurrentListing()
	if only.Pool == "" {
		return write(w, list.PoolsJSON)
	}
	if names := list.Pools(); !slices.Contains(names, only.Pool) {
		return unknownPool.errorf("unknown pool '%s'; caddy alive status (GET /alive/pools) lists all pools%s", only.Pool, suggest.DidYouMean(only.Pool, names))
	}
	return write(w, func() ([]byte, error) { return list.PoolJSON(only.Pool) })
}

// writeList writes the list of all pools or of one, which all viewers share.
func writeList(w http.ResponseWriter, pool string) error {
	list := balancer.CurrentListing()
	if pool == "" {
		return write(w, list.JSON)
	}
	return write(w, func() ([]byte, error) { return list.JSONOf(pool) })
}

// write writes what is rendered.
func write(w http.ResponseWriter, render func() ([]byte, error)) error {
	text, err := render()
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	_, err = w.Write(text)
	return err
}

// writeRows writes a few upstreams as they are at this moment.
func writeRows(w http.ResponseWriter, rows []view.Upstream) error {
	w.Header().Set("Content-Type", "application/json")
	return json.NewEncoder(w).Encode(rows)
}

// parseFilter reads the query, which can have only these parameters.
func parseFilter(r *http.Request, allowed ...string) (balancer.Filter, error) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil { // the part before the error is not the whole query
		return balancer.Filter{}, invalidQuery.errorf("reading the parameters: %v", err)
	}
	for name, values := range query {
		if !slices.Contains(allowed, name) {
			return balancer.Filter{}, unknownParameter.errorf("unknown parameter '%s'; allowed: %s", name, strings.Join(allowed, ", "))
		}
		if len(values) > 1 {
			return balancer.Filter{}, duplicateParameter.errorf("%v", grammar.GivenTwice("parameter '"+name+"'"))
		}
	}
	return balancer.Filter{Pool: query.Get("pool"), Upstream: query.Get("upstream")}, nil
}

// request is the body of a PATCH. A part that is left out stays as it is, and one that
// is null is removed.
type request struct {
	Mode   json.RawMessage `json:"mode"`
	Rebind json.RawMessage `json:"rebind"`
	Weight json.RawMessage `json:"weight"`
}

// readBody reads the body of a request, which has a limit.
func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if tooLarge := new(http.MaxBytesError); errors.As(err, &tooLarge) {
		return nil, bodyTooLarge.errorf("the body is larger than %d bytes", maxBody)
	} else if err != nil {
		return nil, invalidBody.errorf("reading the body: %v", err)
	}
	return body, nil
}

// patch changes the mode or the weight of one upstream, or nothing if anything is
// wrong. It returns which upstreams the change applies to.
func patch(w http.ResponseWriter, r *http.Request, only balancer.Filter) (balancer.Filter, error) {
	var requested request
	body, err := readBody(w, r)
	if err != nil {
		return only, err
	}
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.DisallowUnknownFields()
	err = decoder.Decode(&requested)
	if err == nil && !errors.Is(decoder.Decode(new(json.RawMessage)), io.EOF) {
		err = errors.New("more than one value")
	}
	if err != nil {
		return only, invalidBody.errorf(`decoding the body: %v; it must be like {"mode": "drain"} or {"weight": 3}`, err)
	}
	c, err := requested.change()
	if err != nil {
		return only, err
	}
	registry, err := registryWith(only)
	if err != nil {
		return only, err
	}
	if c, err = complete(registry, only, c); err != nil {
		return only, err
	}
	set := registry.Settings.Change(only.Upstream, c)
	registry.Logger.Info("set by an operator", set.Fields()...)
	registry.Store.Sync(r.Context(), false)
	if c.Mode != nil {
		only.Pool = "" // a mode applies to all pools
	}
	return only, nil
}

// change returns the change that the request asks for.
func (r request) change() (c settings.Change, err error) {
	if r.Mode == nil && r.Weight == nil && r.Rebind == nil {
		return c, nothingToChange.errorf(`nothing to change: give a mode, like {"mode": "drain"}, or a weight, like {"weight": 3}, or null to remove it`)
	}
	if r.Mode != nil {
		m := settings.Mode(settings.Ready)
		if !isNull(r.Mode) {
			if err := json.Unmarshal(r.Mode, &m); err != nil || !m.Valid() {
				return c, invalidMode.errorf("mode must be ready, drain, maintenance or null; got %s", r.Mode)
			}
		}
		c.Mode = &m
	}
	if r.Rebind != nil {
		if json.Unmarshal(r.Rebind, &c.Rebind) != nil { // null is false
			return c, invalidRebind.errorf("rebind must be true, false or null; got %s", r.Rebind)
		}
		if c.Mode == nil || *c.Mode != settings.Drain {
			return c, invalidRebind.errorf(`rebind is part of the mode drain; give both, like {"mode": "drain", "rebind": true}`)
		}
	}
	if r.Weight != nil {
		var weight *int
		if !isNull(r.Weight) {
			number, err := limits.ParseWeight(string(r.Weight), "or null")
			if err != nil {
				return c, invalidWeight.errorf("%v", err)
			}
			weight = &number
		}
		c.Weight = &weight
	}
	return c, nil
}

func isNull(raw json.RawMessage) bool { return string(raw) == "null" }

// registryWith returns the registry that answers, if it has the upstream of the request.
func registryWith(only balancer.Filter) (*balancer.Registry, error) {
	registry := balancer.Newest()
	switch {
	case only.Upstream == "":
		return nil, missingUpstream.errorf("name one upstream by the parameter upstream, as the list of upstreams has it")
	case registry == nil || !balancer.Has(registry, only):
		return nil, unknownUpstream.errorf("unknown upstream '%s'%s; caddy alive status (GET /alive/upstreams) lists all upstreams%s", only.Upstream, inPool(only.Pool), suggest.DidYouMean(only.Upstream, knownUpstreams(only.Pool)))
	}
	return registry, nil
}

// knownUpstreams returns the addresses of the upstreams of a pool, of all pools if that is empty.
func knownUpstreams(pool string) []string {
	rows := balancer.List(balancer.Filter{Pool: pool, Brief: true})
	addresses := make([]string, 0, len(rows))
	for i := range rows {
		addresses = append(addresses, rows[i].Upstream)
	}
	return addresses
}

func inPool(pool string) string {
	if pool == "" {
		return ""
	}
	return fmt.Sprintf(" in the pool '%s'", pool)
}

// complete returns an error if a change cannot be made, and else completes it.
func complete(registry *balancer.Registry, only balancer.Filter, c settings.Change) (settings.Change, error) {
	pools := registry.Having(only.Upstream)
	maps.DeleteFunc(pools, func(name string, _ *balancer.Balancer) bool { return only.Pool != "" && only.Pool != name })
	if len(pools) == 0 {
		if c.Mode != nil && *c.Mode != settings.Ready || c.Weight != nil && *c.Weight != nil {
			return c, upstreamGone.errorf("no pool has the upstream '%s' any more; its settings can only be removed, with mode ready or weight null", only.Upstream)
		}
		if only.Pool == "" {
			return settings.Change{Clear: true}, nil
		}
		if c.Weight == nil {
			return c, poolGone.errorf("the pool '%s' no longer exists; its weight can only be removed, with null", only.Pool)
		}
		c.Pool = only.Pool
		return c, nil
	}
	if c.Weight == nil {
		return c, nil
	}
	if len(pools) > 1 {
		return c, ambiguousPool.errorf("several pools have the upstream '%s'; name the one whose weight is meant, by --pool of the command or pool= in the query", only.Upstream)
	}
	for name, b := range pools {
		if c.Pool = name; b.HasSelect() && *c.Weight != nil && **c.Weight != 0 {
			return c, invalidWeight.errorf("the pool '%s' uses select, so only a weight of 0 or null can be set", name)
		}
	}
	return c, nil
}

// check probes an upstream at once, and lists it with the results.
func (Admin) check(w http.ResponseWriter, r *http.Request) error {
	if r.Method != http.MethodPost {
		return errMethod(w, "POST")
	}
	only, err := parseFilter(r, "pool", "upstream")
	if err != nil {
		return err
	}
	if _, err := readBody(w, r); err != nil { // its content has no meaning
		return err
	}
	registry, err := registryWith(only)
	if err != nil {
		return err
	}
	monitors := registry.Monitors(only)
	if len(monitors) == 0 {
		return notChecked.errorf("the upstream '%s' is not checked", only.Upstream)
	}
	err = monitor.CheckAll(r.Context(), monitors)
	balancer.InvalidateListing()
	if err != nil {
		return checkFailed.errorf("checking '%s': %v", only.Upstream, err)
	}
	return writeRows(w, balancer.List(only))
}

// Interface guard
var _ caddy.AdminRouter = Admin{}
