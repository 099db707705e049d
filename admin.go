// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-alive/caddy-alive/internal/apierror"
	"github.com/caddy-alive/caddy-alive/internal/balancer"
	"github.com/caddy-alive/caddy-alive/internal/fleetapi"
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
//   - `GET /alive/upstreams[?pool=…][&upstream=…][&serving=false]` lists upstreams by pool.
//   - `PATCH /alive/upstreams?upstream=…[&pool=…]` with `{"mode": "ready"}`, `drain`
//     or `maintenance`, and/or `{"weight": 3}`, sets what applies from now on; null
//     removes it. With `{"mode": "drain", "rebind": true}`, clients that are bound to the
//     upstream move. With `{"mode": "drain", "wait": "60s"}`, all members of the fleet say
//     when they have ended their requests to it, which `GET /alive/fleet` shows.
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

var (
	missingUpstream = apierror.NewKind("missing_upstream", http.StatusBadRequest)
	unknownUpstream = apierror.NewKind("unknown_upstream", http.StatusNotFound)
	unknownPool     = apierror.NewKind("unknown_pool", http.StatusNotFound)
	upstreamGone    = apierror.NewKind("upstream_gone", http.StatusNotFound)
	poolGone        = apierror.NewKind("pool_gone", http.StatusBadRequest)
	ambiguousPool   = apierror.NewKind("ambiguous_pool", http.StatusConflict)
	invalidBody     = apierror.NewKind("invalid_body", http.StatusBadRequest)
	bodyTooLarge    = apierror.NewKind("body_too_large", http.StatusRequestEntityTooLarge)
	nothingToChange = apierror.NewKind("nothing_to_change", http.StatusBadRequest)
	invalidMode     = apierror.NewKind("invalid_mode", http.StatusBadRequest)
	invalidRebind   = apierror.NewKind("invalid_rebind", http.StatusBadRequest)
	invalidWait     = apierror.NewKind("invalid_wait", http.StatusBadRequest)
	invalidWeight   = apierror.NewKind("invalid_weight", http.StatusBadRequest)
	notChecked      = apierror.NewKind("not_checked", http.StatusBadRequest)
	waitFailed      = apierror.NewKind("wait_failed", http.StatusServiceUnavailable)
	checkFailed     = apierror.NewKind("check_failed", http.StatusServiceUnavailable)
)

// upstreams lists upstreams, or changes one.
func (Admin) upstreams(w http.ResponseWriter, r *http.Request) error {
	parameters := []string{"pool", "upstream"}
	if r.Method != http.MethodPatch {
		parameters = append(parameters, "serving")
	}
	only, err := parseFilter(r, parameters...)
	if err != nil {
		return err
	}
	switch r.Method {
	case http.MethodHead:
		w.Header().Set("Content-Type", "application/json")
		return nil
	case http.MethodGet:
		if only.Upstream == "" {
			return writeList(w, only)
		}
	case http.MethodPatch:
		changed, err := patch(w, r, only)
		if err != nil {
			return err
		}
		only = changed
	default:
		return apierror.Method(w, "GET, HEAD, PATCH")
	}
	return writeRows(w, balancer.List(only))
}

// pools lists pools.
func (Admin) pools(w http.ResponseWriter, r *http.Request) error {
	only, err := parseFilter(r, "pool")
	if err != nil {
		return err
	}
	return apierror.Read(w, r, func() error {
		list := balancer.CurrentListing()
		if only.Pool == "" {
			return write(w, list.PoolsJSON)
		}
		if names := list.Pools(); !slices.Contains(names, only.Pool) {
			return unknownPool.Errorf("unknown pool '%s'; caddy alive status (GET /alive/pools) lists all pools%s", only.Pool, suggest.DidYouMean(only.Pool, names))
		}
		return write(w, func() ([]byte, error) { return list.PoolJSON(only.Pool) })
	})
}

// writeList writes the list, or what a filter wants of it. All viewers share it.
func writeList(w http.ResponseWriter, only balancer.Filter) error {
	list := balancer.CurrentListing()
	if only == (balancer.Filter{}) {
		return write(w, list.JSON)
	}
	return write(w, func() ([]byte, error) { return list.JSONOf(only) })
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
	query, err := apierror.Query(r, allowed...)
	if err != nil {
		return balancer.Filter{}, err
	}
	serving, err := apierror.Bool(query, "serving")
	return balancer.Filter{Pool: query.Get("pool"), Upstream: query.Get("upstream"), Serving: serving}, err
}

// request is the body of a PATCH. A part that is left out stays as it is, and one that
// is null is removed.
type request struct {
	Mode   json.RawMessage `json:"mode"`
	Rebind json.RawMessage `json:"rebind"`
	Wait   json.RawMessage `json:"wait"`
	Weight json.RawMessage `json:"weight"`
}

// readBody reads the body of a request, which has a limit.
func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if tooLarge := new(http.MaxBytesError); errors.As(err, &tooLarge) {
		return nil, bodyTooLarge.Errorf("the body is larger than %d bytes", maxBody)
	} else if err != nil {
		return nil, invalidBody.Errorf("reading the body: %v", err)
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
		return only, invalidBody.Errorf(`decoding the body: %v; it must be like {"mode": "drain"} or {"weight": 3}`, err)
	}
	c, err := requested.change()
	if err != nil {
		return only, err
	}
	wait, err := requested.wait(c.Mode)
	if err != nil {
		return only, err
	}
	registry, err := registryWith(only)
	if err != nil {
		return only, err
	}
	if wait > 0 && registry.Fleet == nil {
		return only, fleetapi.ErrNoFleet()
	}
	if c, err = complete(registry, only, c); err != nil {
		return only, err
	}
	set := registry.Settings.Change(only.Upstream, c)
	registry.Logger.Info("set by an operator", set.Fields()...)
	registry.Store.Sync(r.Context(), false)
	if wait > 0 {
		if err := beginWait(r.Context(), registry, only.Upstream, wait); err != nil {
			return only, err
		}
	}
	if c.Mode != nil {
		only.Pool = "" // a mode applies to all pools
	}
	return only, nil
}

// beginWait makes the fleet wait for an upstream whose mode was set. If the storage fails, the
// view of the wait says so.
func beginWait(ctx context.Context, registry *balancer.Registry, upstream string, longest time.Duration) error {
	err := registry.Fleet.Wait(ctx, upstream, longest)
	if err == nil {
		return nil
	}
	registry.Logger.Warn("the wait for the fleet fails", zap.String("upstream", upstream), zap.Error(err))
	if registry.Fleet.View(upstream).Wait != nil {
		return nil
	}
	return waitFailed.Errorf("the mode of '%s' is set, but the fleet cannot wait for it: %v", upstream, err)
}

// change returns the change that the request asks for.
func (r request) change() (c settings.Change, err error) {
	if r.Mode == nil && r.Weight == nil && r.Rebind == nil && r.Wait == nil {
		return c, nothingToChange.Errorf(`nothing to change: give a mode, like {"mode": "drain"}, or a weight, like {"weight": 3}, or null to remove it`)
	}
	if r.Mode != nil {
		m := settings.Mode(settings.Ready)
		if !isNull(r.Mode) {
			if err := json.Unmarshal(r.Mode, &m); err != nil || !m.Valid() {
				return c, invalidMode.Errorf("mode must be ready, drain, maintenance or null; got %s", r.Mode)
			}
		}
		c.Mode = &m
	}
	if r.Rebind != nil {
		if json.Unmarshal(r.Rebind, &c.Rebind) != nil { // null is false
			return c, invalidRebind.Errorf("rebind must be true, false or null; got %s", r.Rebind)
		}
		if c.Mode == nil || *c.Mode != settings.Drain {
			return c, invalidRebind.Errorf(`rebind is part of the mode drain; give both, like {"mode": "drain", "rebind": true}`)
		}
	}
	if r.Weight != nil {
		var weight *int
		if !isNull(r.Weight) {
			number, err := limits.ParseWeight(string(r.Weight), "or null")
			if err != nil {
				return c, invalidWeight.Errorf("%v", err)
			}
			weight = &number
		}
		c.Weight = &weight
	}
	return c, nil
}

// wait returns for how long the fleet waits until it has ended its requests, 0 if it does not
// wait. The mode is the one that the request sets, nil if it sets none.
func (r request) wait(mode *settings.Mode) (time.Duration, error) {
	if r.Wait == nil || isNull(r.Wait) {
		return 0, nil
	}
	if mode == nil || *mode == settings.Ready {
		return 0, invalidWait.Errorf(`wait is part of the modes drain and maintenance; give both, like {"mode": "drain", "wait": "60s"}`)
	}
	var text string
	if json.Unmarshal(r.Wait, &text) != nil {
		text = string(r.Wait) // no number: its unit would be a guess
	}
	wait, err := limits.ParseWait(text)
	if err != nil {
		return 0, invalidWait.Errorf("%v", err)
	}
	return wait, nil
}

func isNull(raw json.RawMessage) bool { return string(raw) == "null" }

// registryWith returns the registry that answers, if it has the upstream of the request.
func registryWith(only balancer.Filter) (*balancer.Registry, error) {
	registry := balancer.Newest()
	switch {
	case only.Upstream == "":
		return nil, missingUpstream.Errorf("name one upstream by the parameter upstream, as the list of upstreams has it")
	case registry == nil || !balancer.Has(registry, only):
		return nil, unknownUpstream.Errorf("unknown upstream '%s'%s; caddy alive status (GET /alive/upstreams) lists all upstreams%s", only.Upstream, inPool(only.Pool), suggest.Upstream(only.Upstream, knownUpstreams(only.Pool)))
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
			return c, upstreamGone.Errorf("no pool has the upstream '%s' any more; its settings can only be removed, with mode ready or weight null", only.Upstream)
		}
		if only.Pool == "" {
			return settings.Change{Clear: true}, nil
		}
		if c.Weight == nil {
			return c, poolGone.Errorf("the pool '%s' no longer exists; its weight can only be removed, with null", only.Pool)
		}
		c.Pool = only.Pool
		return c, nil
	}
	if c.Weight == nil {
		return c, nil
	}
	if len(pools) > 1 {
		return c, ambiguousPool.Errorf("several pools have the upstream '%s'; name the one whose weight is meant, by --pool of the command or pool= in the query", only.Upstream)
	}
	for name, b := range pools {
		if c.Pool = name; b.HasSelect() && *c.Weight != nil && **c.Weight != 0 {
			return c, invalidWeight.Errorf("the pool '%s' uses select, so only a weight of 0 or null can be set", name)
		}
	}
	return c, nil
}

// check probes an upstream at once, and lists it with the results.
func (Admin) check(w http.ResponseWriter, r *http.Request) error {
	if r.Method != http.MethodPost {
		return apierror.Method(w, "POST")
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
		return notChecked.Errorf("the upstream '%s' is not checked", only.Upstream)
	}
	err = monitor.CheckAll(r.Context(), monitors)
	balancer.InvalidateListing()
	if err != nil {
		return checkFailed.Errorf("checking '%s': %v", only.Upstream, err)
	}
	return writeRows(w, balancer.List(only))
}

// Interface guard
var _ caddy.AdminRouter = Admin{}
