// SPDX-License-Identifier: Apache-2.0

package fleetapi

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-alive/caddy-alive/internal/balancer"
	"github.com/caddy-alive/caddy-alive/internal/settings"
	"github.com/caddy-alive/caddy-alive/internal/testkit"
	"github.com/caddy-alive/caddy-alive/internal/view"
)

// run runs a registry with that fleet, nil for none.
func run(t *testing.T, fleet balancer.Fleet) {
	t.Helper()
	r := balancer.NewRegistry()
	r.Settings, r.Logger, r.Fleet = settings.NewSet(), zap.NewNop(), fleet
	r.Store = settings.NewStore(r.Settings, &certmagic.FileStorage{Path: t.TempDir()}, "alive/test", 0, r.Logger)
	r.Start()
	t.Cleanup(r.Close)
}

// ask asks the API, as Caddy does.
func ask(t *testing.T, method, query string) *httptest.ResponseRecorder {
	t.Helper()
	recorder := httptest.NewRecorder()
	request := httptest.NewRequestWithContext(t.Context(), method, "/alive/fleet"+query, nil)
	if err := (Admin{}).Routes()[0].Handler.ServeHTTP(recorder, request); err != nil {
		t.Fatal(err)
	}
	return recorder
}

// The module is found by Caddy, which then serves its one route.
func TestAdmin_IsPartOfTheAdminAPI(t *testing.T) {
	info, err := caddy.GetModule("admin.api.alive_fleet")
	if err != nil {
		t.Fatal(err)
	}
	routes := info.New().(caddy.AdminRouter).Routes()
	if len(routes) != 1 || routes[0].Pattern != "/alive/fleet" {
		t.Errorf("routes: %v", routes)
	}
}

// The answer is what the fleet knows, with the wait for the upstream that is named.
func TestFleet_ShowsWhatIsKnown(t *testing.T) {
	known := view.Fleet{
		Fleet: "shops", SyncInterval: 1, Probers: 3,
		Members: []view.Member{
			{ID: "a", Member: "edge-1", Self: true, State: view.MemberLive, NotUp: []view.NotUp{}, Ack: &view.Ack{Follows: true, InFlight: 3}},
			{ID: "b", Member: "edge-2", State: view.MemberLost, Heard: 41, NotUp: []view.NotUp{{Upstream: "app1:80", Check: "tcp", Status: "down", Reason: "refused", Lasts: 5}}, More: 2},
		},
		Wait: &view.Wait{Pending: []string{"edge-1: 3 in flight"}, Lost: []string{"edge-2: not heard for 41s"}, Bound: 1},
	}
	fleet := new(testkit.Fleet)
	fleet.Know(known, nil)
	run(t, fleet)
	for query, want := range map[string]*view.Wait{"?upstream=app1:80": known.Wait, "": nil, "?upstream=": nil} {
		answer := ask(t, http.MethodGet, query)
		var got view.Fleet
		if err := json.Unmarshal(answer.Body.Bytes(), &got); err != nil {
			t.Fatalf("%q: %v: %s", query, err, answer.Body)
		}
		expected := known
		expected.Wait = want
		if answer.Code != http.StatusOK || answer.Header().Get("Content-Type") != "application/json" || !reflect.DeepEqual(got, expected) {
			t.Errorf("%q: got %d, %s", query, answer.Code, answer.Body)
		}
	}
	if answer := ask(t, http.MethodHead, ""); answer.Code != http.StatusOK || answer.Body.Len() > 0 || answer.Header().Get("Content-Type") != "application/json" {
		t.Errorf("HEAD: got %d, %s", answer.Code, answer.Body)
	}
}

// Errors have their codes, whether or not there is a fleet. Without one, and while no config
// runs, the answer says how to get one.
func TestFleet_ErrorsHaveCodes(t *testing.T) {
	check := func(what, method, query string, status int, code, says string) {
		t.Helper()
		answer := ask(t, method, query)
		var failure struct{ Error, Code string }
		if err := json.Unmarshal(answer.Body.Bytes(), &failure); err != nil {
			t.Fatalf("%s: %s %s: %v: %s", what, method, query, err, answer.Body)
		}
		if answer.Code != status || failure.Code != code || !strings.Contains(failure.Error, says) {
			t.Errorf("%s: %s %s: got %d, %s, want %d, %s, %q", what, method, query, answer.Code, answer.Body, status, code, says)
		}
		if allow := answer.Header().Get("Allow"); (allow == "GET, HEAD") != (status == http.StatusMethodNotAllowed) {
			t.Errorf("%s: %s %s: Allow is %q", what, method, query, allow)
		}
	}
	always := func(what string) {
		t.Helper()
		check(what, http.MethodGet, "?up=1", 400, "unknown_parameter", "unknown parameter 'up'; allowed: upstream")
		check(what, http.MethodGet, "?upstream=a&upstream=b", 400, "duplicate_parameter", "parameter 'upstream' is given twice")
		check(what, http.MethodGet, "?%", 400, "invalid_query", "reading the parameters")
		check(what, http.MethodPost, "", 405, "method_not_allowed", "allowed: GET, HEAD")
	}
	none := func(what string) {
		t.Helper()
		always(what)
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			check(what, method, "", 404, "no_fleet", "this Caddy is in no fleet; the global option alive { fleet <name> } puts it into one")
		}
	}
	none("no config")
	t.Run("no fleet", func(t *testing.T) {
		run(t, nil)
		none("no fleet")
	})
	t.Run("a fleet", func(t *testing.T) {
		run(t, new(testkit.Fleet))
		always("a fleet")
	})
}
