// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"errors"
	"fmt"
	"net/http"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-alive/caddy-alive/probe"
)

// checkConnection reports why the connection of probes cannot be as the check says.
func (c *HealthCheck) checkConnection(logger *zap.Logger) error {
	if c.KeepConnection {
		if err := checkKeeps(c.kind); err != nil {
			return err
		}
	}
	if !c.overrides.FreshConnection {
		return nil
	}
	if c.KeepConnection {
		return errKeepFresh
	}
	logger.Warn("fresh_connection is the default and can be left out; its opposite is keep_connection", zap.String("check", c.label))
	return nil
}

var errKeepFresh = errors.New("keep_connection and fresh_connection exclude each other; without either, every probe has a connection of its own")

// checkKeeps rejects kinds of check whose probes send no requests.
func checkKeeps(kind string) error {
	info, err := caddy.GetModule("alive.probes." + kind)
	if err != nil {
		return nil // which is reported elsewhere
	}
	if _, none := info.New().(probe.NoRequests); none {
		return fmt.Errorf("keep_connection has no meaning for a check of the kind %s, which sends no requests", kind)
	}
	return nil
}

// warnGaveUp logs when kept connections turn out to be of no use.
func (r *route) warnGaveUp(logger *zap.Logger, fields []zap.Field) {
	if r.connection == nil {
		return
	}
	r.connection.GaveUp = func(err error) {
		logger.With(fields...).Warn("probes on a kept connection failed twice in a row, and passed on a new one: until the next reload every probe has a connection of its own; something between forgets idle connections, or the upstream closes them",
			zap.Error(err))
	}
}

// toUpstream sends requests through a forward proxy, which asks the host that a request
// names. So a request of a redirect to another host names the upstream instead.
type toUpstream struct {
	http.RoundTripper
	host string // of the upstream
}

// RoundTrip sends the request.
func (t toUpstream) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Host != t.host {
		there, target := *req, *req.URL
		target.Host = t.host
		there.URL, there.Host = &target, t.host
		req = &there
	}
	return t.RoundTripper.RoundTrip(req)
}
