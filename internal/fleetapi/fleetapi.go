// SPDX-License-Identifier: Apache-2.0

// Package fleetapi is the part of the admin API that shows the members of a fleet. It must
// not know how they find each other. It has no state and no locks.
package fleetapi

import (
	"encoding/json"
	"net/http"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-alive/caddy-alive/internal/apierror"
	"github.com/caddy-alive/caddy-alive/internal/balancer"
)

func init() { caddy.RegisterModule(Admin{}) }

// Admin is the part of Caddy's admin API that shows what this Caddy knows of all members of
// its fleet. It has no state: it answers for the newest started config.
//
//   - `GET /alive/fleet[?upstream=…]` shows the members, when they were last heard, and which
//     upstreams are not up there. With an upstream, it also shows the newest wait for that
//     upstream, and what each member says of it.
type Admin struct{}

// CaddyModule returns the Caddy module information.
func (Admin) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "admin.api.alive_fleet",
		New: func() caddy.Module { return new(Admin) },
	}
}

// Routes returns the routes of the API.
func (a Admin) Routes() []caddy.AdminRoute {
	return []caddy.AdminRoute{{Pattern: "/alive/fleet", Handler: apierror.Answer(a.fleet)}}
}

var noFleet = apierror.NewKind("no_fleet", http.StatusNotFound)

// ErrNoFleet returns the error for a request that needs a fleet, if this Caddy is in none.
func ErrNoFleet() error {
	return noFleet.Errorf("this Caddy is in no fleet; the global option alive { fleet <name> } puts it into one, in JSON the field \"fleet\" of the app alive")
}

// fleet shows the fleet.
func (Admin) fleet(w http.ResponseWriter, r *http.Request) error {
	query, err := apierror.Query(r, "upstream")
	if err != nil {
		return err
	}
	registry := balancer.Newest()
	known := registry != nil && registry.Fleet != nil
	if !known && (r.Method == http.MethodGet || r.Method == http.MethodHead) {
		return ErrNoFleet()
	}
	return apierror.Read(w, r, func() error {
		w.Header().Set("Content-Type", "application/json")
		return json.NewEncoder(w).Encode(registry.Fleet.View(query.Get("upstream")))
	})
}

// Interface guard
var _ caddy.AdminRouter = Admin{}
