// SPDX-License-Identifier: Apache-2.0

package monitor

import (
	"errors"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/health"
)

// shortageError is the error of a dial that failed because this process lacks a resource.
type shortageError struct {
	error
	shortage error
}

// Unwrap returns both errors.
func (e shortageError) Unwrap() []error { return []error{e.error, e.shortage} }

// withShortage adds the resource that this process lacks to the error of a probe. Caddy's
// own type of error for a dial has only its text.
func withShortage(err error) error {
	if dial, ok := errors.AsType[reverseproxy.DialError](err); ok {
		if shortage := health.ShortageIn(dial.Error()); shortage != nil {
			return shortageError{err, shortage}
		}
	}
	return err
}
