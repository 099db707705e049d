// SPDX-License-Identifier: Apache-2.0

package apierror

import (
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/caddy-alive/caddy-alive/internal/grammar"
)

var (
	methodNotAllowed   = NewKind("method_not_allowed", http.StatusMethodNotAllowed)
	invalidQuery       = NewKind("invalid_query", http.StatusBadRequest)
	unknownParameter   = NewKind("unknown_parameter", http.StatusBadRequest)
	duplicateParameter = NewKind("duplicate_parameter", http.StatusBadRequest)
)

// Method returns the error for a request whose method is not allowed, and tells the client
// those that are, such as "GET, HEAD".
func Method(w http.ResponseWriter, allowed string) error {
	w.Header().Set("Allow", allowed)
	return methodNotAllowed.Errorf("method not allowed; allowed: %s", allowed)
}

// Query returns the parameters of a request, which can have only these, each of them once.
func Query(r *http.Request, allowed ...string) (url.Values, error) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil { // the part before the error is not the whole query
		return nil, invalidQuery.Errorf("reading the parameters: %v", err)
	}
	for name, values := range query {
		if !slices.Contains(allowed, name) {
			return nil, unknownParameter.Errorf("unknown parameter '%s'; allowed: %s", name, strings.Join(allowed, ", "))
		}
		if len(values) > 1 {
			return nil, duplicateParameter.Errorf("%v", grammar.GivenTwice("parameter '"+name+"'"))
		}
	}
	return query, nil
}

// Bool returns a parameter that is true or false, nil if the request has none.
func Bool(query url.Values, name string) (*bool, error) {
	switch value := query.Get(name); {
	case !query.Has(name):
		return nil, nil
	case value == "true", value == "false":
		return new(value == "true"), nil
	default:
		return nil, invalidQuery.Errorf("the parameter '%s' is true or false; got '%s'", name, value)
	}
}

// Read answers a request that can only read: GET as read does, and HEAD without a body. Both
// are JSON.
func Read(w http.ResponseWriter, r *http.Request, read func() error) error {
	switch r.Method {
	case http.MethodHead:
		w.Header().Set("Content-Type", "application/json")
		return nil
	case http.MethodGet:
		return read()
	default:
		return Method(w, "GET, HEAD")
	}
}
