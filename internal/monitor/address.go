// SPDX-License-Identifier: Apache-2.0

package monitor

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/view"
)

// ErrPerRequest says that how an upstream is reached depends on the request, or can change
// from one request to the next, so that a probe cannot do the same.
var ErrPerRequest = errors.New("its address or TLS server name depends on the request or can change at any time")

// Upstream is an upstream of a handler.
type Upstream struct {
	// Dial is its address in the handler's list of upstreams, and Address the same with
	// constant placeholders replaced.
	Dial, Address string
	at            caddy.NetworkAddress
}

// ParseUpstream reads the dial address of an upstream. The error is [ErrPerRequest] if it
// has placeholders that are not constant.
func ParseUpstream(dial string) (Upstream, error) {
	u := Upstream{Dial: dial, Address: replaceConstants(dial)}
	if u.Address == "" {
		return u, errors.New("its placeholders are empty")
	}
	if strings.Contains(u.Address, "{") {
		return u, ErrPerRequest
	}
	var err error
	if u.at, err = caddy.ParseNetworkAddress(u.Address); err != nil {
		return u, err
	}
	if n := u.at.PortRangeSize(); n != 1 {
		return u, fmt.Errorf("the address must be one socket, not %d", n)
	}
	return u, nil
}

// DisplayAddress returns a dial address as operators see it and name it: with constant
// placeholders replaced, and as valid UTF-8.
func DisplayAddress(dial string) string { return view.ValidText(replaceConstants(dial)) }

// replaceConstants replaces placeholders with values that cannot change while Caddy runs.
func replaceConstants(text string) string { return constants().ReplaceKnown(text, "") }

// constants returns a replacer for placeholders with values that cannot change while Caddy
// runs: those of the environment and of the system. A file can change, and so does the
// time.
func constants() *caddy.Replacer {
	known, constant := caddy.NewReplacer(), caddy.NewEmptyReplacer()
	constant.Map(func(key string) (any, bool) {
		if strings.HasPrefix(key, "env.") || strings.HasPrefix(key, "system.") {
			return known.Get(key)
		}
		return nil, false
	})
	return constant
}

// where returns the address at which the check probes an upstream.
func (c *Check) where(upstream caddy.NetworkAddress) (caddy.NetworkAddress, error) {
	at := upstream
	if c.Address != nil {
		if at = *c.Address; at.IsUnixNetwork() || at.StartPort != 0 {
			return at, nil
		}
		at.StartPort, at.EndPort = upstream.StartPort, upstream.EndPort
	}
	if upstream.IsUnixNetwork() || upstream.IsFdNetwork() {
		switch {
		case c.Port == 0 && c.Address != nil:
			return at, errors.New("the upstream has no port to probe at that address; add one to it")
		case c.Port != 0 && c.Address == nil:
			return at, errors.New("the upstream has no host to probe a port of; name one by address")
		}
	}
	if c.Port != 0 {
		at.StartPort, at.EndPort = uint(c.Port), uint(c.Port)
	}
	return at, nil
}

func dialInfo(addr caddy.NetworkAddress) reverseproxy.DialInfo {
	return reverseproxy.DialInfo{
		Network: addr.Network,
		Address: addr.JoinHostPort(0),
		Host:    addr.Host,
		Port:    strconv.FormatUint(uint64(addr.StartPort), 10),
	}
}
