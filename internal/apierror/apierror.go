// SPDX-License-Identifier: Apache-2.0

// Package apierror has the errors of the admin API: a text for humans, and a code by which
// programs tell one from another. It also has what all parts of the API do before they
// answer: they check the method and the parameters of a request. It must not know what the
// API does. It has no state and no locks.
package apierror

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"
)

// Kind is a kind of error: the code by which programs tell it, and the status of the
// answer.
type Kind struct {
	code   string
	status int
}

// NewKind returns a kind of error.
func NewKind(code string, status int) Kind { return Kind{code, status} }

// Errorf returns an error of that kind, which says what is wrong, and what is allowed.
func (k Kind) Errorf(format string, args ...any) error {
	return &Error{Message: fmt.Sprintf(format, args...), Code: k.code, status: k.status}
}

// Error is an error that is answered with its code.
type Error struct {
	Message string `json:"error"`
	Code    string `json:"code"`
	status  int
}

// Error returns the message, without the code.
func (e *Error) Error() string { return e.Message }

// Answer answers and logs errors as Caddy does, and adds the code, which Caddy's own error
// has no place for.
func Answer(handle caddy.AdminHandlerFunc) caddy.AdminHandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) error {
		err := handle(w, r)
		var failure *Error
		if !errors.As(err, &failure) {
			return err
		}
		logger := caddy.Log().Named("admin.api")
		logger.Error("request error", zap.Error(failure), zap.Int("status_code", failure.status))
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(failure.status)
		if err := json.NewEncoder(w).Encode(failure); err != nil {
			logger.Error("failed to encode error response", zap.Error(err))
		}
		return nil
	}
}
