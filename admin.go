// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/limits"
	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/view"
)

// maxBody bounds what an operator can send, in bytes.
const maxBody = 64 << 10

// Admin is the part of Caddy's admin API that shows upstreams and changes them. It
// keeps nothing: it answers for the newest started config.
//
//   - `GET /alive/upstreams[?pool=…][&upstream=…]` lists upstreams by pool.
//   - `PATCH /alive/upstreams?upstream=…[&pool=…]` with `{"mode": "ready"}`, `drain`
//     or `maintenance`, and/or `{"weight": 3}`, sets what holds from now on; null
//     takes it back.
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
		{Pattern: "/alive/upstreams", Handler: caddy.AdminHandlerFunc(a.upstreams)},
		{Pattern: "/alive/check", Handler: caddy.AdminHandlerFunc(a.check)},
	}
}

// listedBy is where one learns which upstreams there are.
const listedBy = "GET /alive/upstreams"

// apiError is an answer that says what is wrong, and what is allowed.
func apiError(status int, format string, args ...any) error {
	return caddy.APIError{HTTPStatus: status, Err: fmt.Errorf(format, args...)}
}

func errMethod(w http.ResponseWriter, allowed string) error {
	w.Header().Set("Allow", allowed)
	return apiError(http.StatusMethodNotAllowed, "method not allowed; allowed: %s", allowed)
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
		if only.upstream == "" {
			return writeListing(w, only.pool)
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
	return writeEntries(w, overview(only))
}

// writeListing writes the list of all pools, or of one, as all viewers share it.
func writeListing(w http.ResponseWriter, pool string) error {
	render := (*listing).jsonList
	if pool != "" {
		render = func(l *listing) ([]byte, error) { return l.jsonPool(pool) }
	}
	text, err := listings.render(render)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	_, err = w.Write(text)
	return err
}

// writeEntries writes a few upstreams as they are at this moment.
func writeEntries(w http.ResponseWriter, entries []view.Upstream) error {
	w.Header().Set("Content-Type", "application/json")
	return json.NewEncoder(w).Encode(entries)
}

// parseFilter reads the query, in which only these can stand.
func parseFilter(r *http.Request, allowed ...string) (filter, error) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil { // what parsed before that must not pass for all that was meant
		return filter{}, apiError(http.StatusBadRequest, "reading the parameters: %v", err)
	}
	for name, values := range query {
		if !slices.Contains(allowed, name) {
			return filter{}, apiError(http.StatusBadRequest, "unknown parameter '%s'; allowed: %s", name, strings.Join(allowed, ", "))
		}
		if len(values) > 1 {
			return filter{}, apiError(http.StatusBadRequest, "parameter '%s' is given twice", name)
		}
	}
	return filter{pool: query.Get("pool"), upstream: query.Get("upstream")}, nil
}

// request is what PATCH can be told. A part that is left out stays as it is, and one
// that is null is taken back.
type request struct {
	Mode   json.RawMessage `json:"mode"`
	Weight json.RawMessage `json:"weight"`
}

// readBody reads what an operator sends, if it is not too much.
func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if tooLarge := new(http.MaxBytesError); errors.As(err, &tooLarge) {
		return nil, apiError(http.StatusRequestEntityTooLarge, "the body is larger than %d bytes", maxBody)
	} else if err != nil {
		return nil, apiError(http.StatusBadRequest, "reading the body: %v", err)
	}
	return body, nil
}

// patch changes the mode or the weight of one upstream, or nothing if anything is
// wrong. It returns whom that concerned.
func patch(w http.ResponseWriter, r *http.Request, only filter) (filter, error) {
	var asked request
	body, err := readBody(w, r)
	if err != nil {
		return only, err
	}
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.DisallowUnknownFields()
	err = decoder.Decode(&asked)
	if err == nil && !errors.Is(decoder.Decode(new(json.RawMessage)), io.EOF) {
		err = errors.New("more than one value")
	}
	if err != nil {
		return only, apiError(http.StatusBadRequest, `decoding the body: %v; it must be like {"mode": "drain"} or {"weight": 3}`, err)
	}
	c, err := asked.change()
	if err != nil {
		return only, err
	}
	app, err := appWith(only)
	if err != nil {
		return only, err
	}
	if c, err = app.checkChange(only, c); err != nil {
		return only, err
	}
	set := app.operations.Change(only.upstream, c)
	app.logger.Info("set by an operator", set.Fields()...)
	app.keeper.Sync(r.Context(), false)
	if c.Mode != nil {
		only.pool = "" // a mode is that of all pools
	}
	return only, nil
}

// change reads what is wanted.
func (asked request) change() (c settings.Change, err error) {
	if asked.Mode == nil && asked.Weight == nil {
		return c, apiError(http.StatusBadRequest, `nothing to change: give a mode, like {"mode": "drain"}, or a weight, like {"weight": 3}, or null to take it back`)
	}
	if asked.Mode != nil {
		m := settings.Mode(settings.Ready)
		if !isNull(asked.Mode) {
			if err := json.Unmarshal(asked.Mode, &m); err != nil || !m.Valid() {
				return c, apiError(http.StatusBadRequest, "mode must be ready, drain, maintenance or null; got %s", asked.Mode)
			}
		}
		c.Mode = &m
	}
	if asked.Weight != nil {
		var weight *int
		if err := json.Unmarshal(asked.Weight, &weight); err != nil || weight != nil && !limits.IsWeight(*weight) {
			return c, apiError(http.StatusBadRequest, "weight must be %s, or null; got %s", limits.WeightRange, asked.Weight)
		}
		c.Weight = &weight
	}
	return c, nil
}

func isNull(raw json.RawMessage) bool { return string(raw) == "null" }

// appWith returns the app that answers, if it knows the upstream that is asked for.
func appWith(only filter) (*App, error) {
	app := newestApp()
	switch {
	case only.upstream == "":
		return nil, apiError(http.StatusBadRequest, "name one upstream by the parameter upstream, as the list of upstreams has it")
	case app == nil || len(overview(only)) == 0:
		return nil, apiError(http.StatusNotFound, "unknown upstream '%s'%s; "+listedBy+" lists those there are%s", only.upstream, inPool(only.pool), didYouMean(only.upstream, known(only.pool)))
	}
	return app, nil
}

// known returns the addresses of the upstreams of a pool, of all pools if that is empty.
func known(pool string) []string {
	entries := overview(filter{pool: pool, brief: true})
	addresses := make([]string, 0, len(entries))
	for _, e := range entries {
		addresses = append(addresses, e.Upstream)
	}
	return addresses
}

func inPool(pool string) string {
	if pool == "" {
		return ""
	}
	return fmt.Sprintf(" in the pool '%s'", pool)
}

// checkChange reports whether a change can be made, and completes it.
func (a *App) checkChange(only filter, c settings.Change) (settings.Change, error) {
	pools := make(map[string]*Selection)
	for _, s := range a.all() {
		if s.byAddress(only.upstream) != nil && (only.pool == "" || only.pool == s.pool) {
			pools[s.pool] = s
		}
	}
	if len(pools) == 0 {
		if c.Mode != nil && *c.Mode != settings.Ready || c.Weight != nil && *c.Weight != nil {
			return c, apiError(http.StatusNotFound, "no pool has the upstream '%s'; what is stored of it can only be taken back, by ready or null", only.upstream)
		}
		if only.pool == "" {
			return settings.Change{Clear: true}, nil
		}
		if c.Weight == nil {
			return c, apiError(http.StatusBadRequest, "the pool '%s' is gone; only the weight that was set for it can be taken back, by null", only.pool)
		}
		c.Pool = only.pool
		return c, nil
	}
	if c.Weight == nil {
		return c, nil
	}
	if len(pools) > 1 {
		return c, apiError(http.StatusConflict, "several pools have the upstream '%s'; name the one whose weight is meant by the parameter pool", only.upstream)
	}
	for name, s := range pools {
		if c.Pool = name; s.inner != nil && *c.Weight != nil && **c.Weight != 0 {
			return c, apiError(http.StatusBadRequest, "the pool '%s' picks by the policy of select, which decides by itself: only a weight of 0 or null can be set", name)
		}
	}
	return c, nil
}

// check probes an upstream at once, and lists it with what came of that.
func (Admin) check(w http.ResponseWriter, r *http.Request) error {
	if r.Method != http.MethodPost {
		return errMethod(w, "POST")
	}
	only, err := parseFilter(r, "pool", "upstream")
	if err != nil {
		return err
	}
	if _, err := readBody(w, r); err != nil { // there is nothing to say in it
		return err
	}
	app, err := appWith(only)
	if err != nil {
		return err
	}
	targets := make(map[*health.Target]time.Duration)
	for _, s := range app.all() {
		if m := s.byAddress(only.upstream); m != nil && (only.pool == "" || only.pool == s.pool) {
			for _, w := range m.watches {
				targets[w.target] = w.key.settings.Timeout
			}
		}
	}
	if len(targets) == 0 {
		return apiError(http.StatusBadRequest, "the upstream '%s' is not checked", only.upstream)
	}
	err = checkAll(r.Context(), targets)
	listings.changed()
	if err != nil {
		return apiError(http.StatusServiceUnavailable, "checking '%s': %v", only.upstream, err)
	}
	return writeEntries(w, overview(only))
}

// checkAll has all targets, which are given with their timeouts, probed at once.
func checkAll(ctx context.Context, targets map[*health.Target]time.Duration) error {
	// a probe in flight may have to end first
	const patience = time.Second
	errs := make(chan error, len(targets))
	var wg sync.WaitGroup
	for target, timeout := range targets {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, 2*timeout+patience)
			defer cancel()
			_, err := target.Check(ctx)
			errs <- err
		})
	}
	wg.Wait()
	close(errs)
	var all []error
	for err := range errs {
		all = append(all, err)
	}
	return errors.Join(all...)
}

// Interface guard
var _ caddy.AdminRouter = Admin{}
