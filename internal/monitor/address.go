// SPDX-License-Identifier: Apache-2.0

package monitor

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"unicode"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/limits"
	"github.com/caddy-alive/caddy-alive/internal/placeholder"
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
func (c *Check) where(upstream caddy.NetworkAddress) (at caddy.NetworkAddress, err error) {
	of := dialInfo(upstream)
	value := func(name string) (any, bool) { return placeholder.Of(of, name) }
	if at = upstream; !c.Address.IsEmpty() {
		if at, err = c.address(value); err != nil {
			return at, err
		}
	}
	own := !c.Address.IsEmpty() && (at.IsUnixNetwork() || at.StartPort != 0)
	if c.Port.IsEmpty() {
		if own || c.Address.IsEmpty() {
			return at, nil
		}
		if upstream.IsUnixNetwork() || upstream.IsFdNetwork() {
			return at, errors.New("the upstream has no port to probe at that address; add one to it")
		}
		at.StartPort, at.EndPort = upstream.StartPort, upstream.EndPort
		return at, nil
	}
	if own {
		return at, ErrPortTwice(c.Address.String())
	}
	port, added, err := c.port(value)
	if err != nil {
		return at, err
	}
	if upstream.IsUnixNetwork() || upstream.IsFdNetwork() {
		switch {
		case added:
			return at, fmt.Errorf("the upstream is a socket without a port that %s could be added to; give the port itself, and a host by address", c.Port)
		case c.Address.IsEmpty():
			return at, errors.New("the upstream has no host to probe a port of; name one by address")
		}
	}
	if added {
		if port += int(upstream.StartPort); port > math.MaxUint16 {
			return at, fmt.Errorf("port %s: there is no port %d, which is so much above the %d of the upstream", c.Port, port, upstream.StartPort)
		}
	}
	at.StartPort, at.EndPort = uint(port), uint(port)
	return at, nil
}

// address returns the address that the check names for an upstream. Errors show it as
// written, since what placeholders stand for may be secret.
func (c *Check) address(value caddy.ReplacerFunc) (caddy.NetworkAddress, error) {
	text, err := c.Address.For(func(name string) (any, bool) {
		found, known := value(name)
		if ip, err := netip.ParseAddr(caddy.ToString(found)); err == nil && ip.Is6() {
			return "[" + ip.String() + "]", true // so that a port can follow
		}
		return found, known
	})
	if err != nil {
		return caddy.NetworkAddress{}, err
	}
	addr, err := ParseAddress(text)
	if err != nil {
		err = ErrAddress(c.Address.String())
	}
	return addr, err
}

// port returns the port that the check names for an upstream, and whether it is to be
// added to that of the upstream.
func (c *Check) port(value caddy.ReplacerFunc) (port int, added bool, err error) {
	text, err := c.Port.For(value)
	if err != nil {
		return 0, false, err
	}
	if port, added, err = limits.Port(text); err != nil && text != c.Port.String() {
		err = fmt.Errorf("port must be a %s, also with its placeholders replaced; got '%s'", limits.PortRange, c.Port)
	}
	return port, added, err
}

// ErrPortTwice is the error for a port beside an address that has one, or is a unix
// socket.
func ErrPortTwice(address string) error {
	return fmt.Errorf("port cannot be combined with an address that already has a port, or is a unix socket: %s", address)
}

// ParseAddress reads where to probe. Without a port, that is 0.
func ParseAddress(text string) (caddy.NetworkAddress, error) {
	addr, err := caddy.ParseNetworkAddress(text)
	tcp := addr.Network == "tcp" || addr.Network == "tcp4" || addr.Network == "tcp6"
	if err != nil || CheckSpaces(text) != nil || strings.HasSuffix(text, ":0") || addr.Host == "" || tcp && strings.Contains(addr.Host, "/") || addr.PortRangeSize() != 1 || !tcp && addr.Network != "unix" {
		return addr, ErrAddress(text)
	}
	return addr, nil
}

// ErrAddress is the error for a text that is no address to probe.
func ErrAddress(got string) error {
	return fmt.Errorf("address must be a host, optionally with a port, or a unix socket, like 127.0.0.1:8081 or unix//run/app.sock; got '%s'", got)
}

// partOfAddress is a placeholder that can stand for a part of an address.
var partOfAddress = regexp.MustCompile(`\{[^{}]*\}`)

// CheckSpaces rejects an address with spaces, which no connection can be made to, unless
// they are part of the path of a unix socket.
func CheckSpaces(address string) error {
	network, _, _, err := caddy.SplitNetworkAddress(address)
	if err == nil && caddy.IsUnixNetwork(network) {
		return nil
	}
	outside := partOfAddress.ReplaceAllString(address, "")
	if strings.ContainsFunc(outside, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }) {
		return errors.New("an address must not contain spaces")
	}
	return nil
}

func dialInfo(addr caddy.NetworkAddress) reverseproxy.DialInfo {
	return reverseproxy.DialInfo{
		Network: addr.Network,
		Address: addr.JoinHostPort(0),
		Host:    addr.Host,
		Port:    strconv.FormatUint(uint64(addr.StartPort), 10),
	}
}
