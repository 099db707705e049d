// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/kinds"
	"github.com/caddy-alive/caddy-alive/internal/limits"
	"github.com/caddy-alive/caddy-alive/internal/monitor"
	"github.com/caddy-alive/caddy-alive/internal/placeholder"
	"github.com/caddy-alive/caddy-alive/internal/redact"
	"github.com/caddy-alive/caddy-alive/probe"
)

// HealthCheck is an active health check of every upstream of a proxy. Probes
// travel as proxied requests do, with the TLS settings, HTTP version and
// dialer of the proxy's transport, over connections of their own.
//
// The very first result decides alone. From then on only results in a row
// change the status: `fails` to take an upstream down, `passes` to bring it
// back; one pass is enough as long as it was never up.
//
// An upstream that dies is out of the rotation after at most `interval` plus
// `fails` times the larger of `timeout` and `fast_interval`, with `jitter`
// added to the intervals.
type HealthCheck struct {
	// What to ask the upstream. Required.
	ProbeRaw json.RawMessage `json:"probe,omitempty" caddy:"namespace=alive.probes inline_key=kind"`

	// The label of the check, as operators see it and as metrics, events and logs
	// have it: one line of 200 bytes at most. Default: the kind, with the options
	// that tell checks of one upstream apart, such as `http /healthz port 8081`.
	Name string `json:"name,omitempty"`

	// The time from the start of one probe to the start of the next while the
	// status is settled, from `10ms` to `24h`. Default: `5s`.
	Interval caddy.Duration `json:"interval,omitempty"`

	// The interval while results in a row speak against the status, and until
	// the upstream was up once; at least `10ms`, and not longer than `interval`.
	// Default: `1s`, or `interval` if that is less.
	FastInterval caddy.Duration `json:"fast_interval,omitempty"`

	// The interval while the upstream is down, from `10ms` to `24h`. Default:
	// `interval`.
	DownInterval caddy.Duration `json:"down_interval,omitempty"`

	// How long one probe may take, from `1ms` to `24h`. Default: `2s`.
	Timeout caddy.Duration `json:"timeout,omitempty"`

	// How many passes in a row bring an upstream back that is down. Default: 2.
	Passes int `json:"passes,omitempty"`

	// How many fails in a row take an upstream down that is up. Default: 3.
	Fails int `json:"fails,omitempty"`

	// By how much intervals are lengthened at random at most, from `0%` to
	// `100%`, so that probes do not all happen at once. Default: `10%`.
	Jitter string `json:"jitter,omitempty"`

	// The port to probe instead of that of the upstream, or what to add to that, such as
	// `"+1000"`. Whether probes use TLS goes by it, too, if the transport has
	// `except_ports`. Placeholders of the upstream that is probed can be used here and in
	// `address`.
	Port Port `json:"port,omitempty"`

	// Where to probe instead: a host, with a port if it is not that of the
	// upstream, or a unix socket, such as `unix//run/app.sock`. All upstreams are
	// probed there, unless it has a placeholder such as
	// `{http.reverse_proxy.upstream.host}`.
	Address string `json:"address,omitempty"`

	// The PROXY protocol header to begin connections with: `off`, `v1` (which says
	// UNKNOWN) or `v2` (which says LOCAL). Default: the version of the transport.
	ProxyProtocol string `json:"proxy_protocol,omitempty"`

	// Whether the connection of a probe is kept for the next one, for 60 seconds at
	// most and while probes pass. That is cheaper, above all with TLS, but occupies a
	// worker of servers that serve one connection at a time. It is an error for kinds
	// that send no requests: `tcp`, `tls` and `exec`. Default: false, every probe has
	// a connection of its own, which ends with it.
	KeepConnection bool `json:"keep_connection,omitempty"`

	prober   probe.Prober
	resolved monitor.Check   // the check as monitors need it
	secrets  redact.Values   // what Address must not show in a reason
	place    caddyfile.Token // where a Caddyfile has it
}

// defaultCheck is what finds out which upstreams are alive where nothing is configured.
func defaultCheck() *HealthCheck { return &HealthCheck{ProbeRaw: json.RawMessage(`{"kind":"tcp"}`)} }

// provision loads the probe and fills in the defaults. The check is one of the upstreams
// of a handler.
func (c *HealthCheck) provision(ctx caddy.Context, h *reverseproxy.Handler) error {
	if c == nil {
		return kinds.ErrNone()
	}
	kind, identity, err := kinds.Identify(c.ProbeRaw)
	if err != nil {
		return err
	}
	if err := limits.Name(c.Name); err != nil {
		return err
	}
	c.resolved = monitor.Check{
		Kind: kind, Identity: identity, DefaultHost: c.defaultHost(h), ProxyProtocol: c.ProxyProtocol, KeepConnection: c.KeepConnection,
		Validate: c.validate, Bind: c.bind,
	}
	c.resolved.Label = c.defaultLabel()
	mod, err := ctx.LoadModule(c, "ProbeRaw")
	if err != nil {
		return fmt.Errorf("loading probe: %v", err)
	}
	prober, ok := mod.(probe.Prober)
	if !ok {
		return fmt.Errorf("loading probe: module alive.probes.%s (%T) cannot probe", kind, mod)
	}
	c.prober = prober
	_, c.resolved.NoRequests = mod.(probe.NoRequests)
	if o, ok := prober.(probe.Overrider); ok {
		c.resolved.Overrides = monitor.Overrides(o.Overrides())
	}
	if c.resolved.Overrides.NoConnection && c.ProxyProtocol != "" {
		return fmt.Errorf("proxy_protocol has no meaning for %s, which makes no connection of its own", kind)
	}
	if err := c.checkConnection(ctx.Logger()); err != nil {
		return err
	}
	if err := c.provisionAddress(); err != nil {
		return err
	}
	c.resolved.Settings, err = c.resolve()
	return err
}

// checkConnection reports why the connection of probes cannot be as the check says.
func (c *HealthCheck) checkConnection(logger *zap.Logger) error {
	if c.KeepConnection {
		if err := checkKeeps(c.resolved.Kind); err != nil {
			return err
		}
	}
	if !c.resolved.Overrides.FreshConnection {
		return nil
	}
	if c.KeepConnection {
		return errKeepFresh
	}
	logger.Warn("fresh_connection is the default and can be left out; its opposite is keep_connection", zap.String("check", c.resolved.Label))
	return nil
}

var errKeepFresh = errors.New("keep_connection and fresh_connection exclude each other; without either, every probe has a connection of its own")

// checkKeeps rejects kinds of check with probes that send no requests.
func checkKeeps(kind string) error {
	info, err := kinds.Module(kind)
	if err != nil {
		return nil // which is reported elsewhere
	}
	if _, none := info.New().(probe.NoRequests); none {
		return fmt.Errorf("keep_connection has no meaning for a check of the kind %s, which sends no requests", kind)
	}
	return nil
}

// provisionAddress resolves where to probe.
func (c *HealthCheck) provisionAddress() error {
	if c.ProxyProtocol != "" {
		if err := limits.ProxyProtocol(c.ProxyProtocol); err != nil {
			return err
		}
	}
	if err := c.Port.check(); err != nil {
		return err
	}
	var err error
	if c.resolved.Port, err = placeholder.Parse("port", string(c.Port)); err != nil {
		return err
	}
	if c.resolved.Address, err = placeholder.Parse("address", c.Address); err != nil {
		return err
	}
	c.secrets.Learn(c.Address)
	text, constant := c.resolved.Address.Constant()
	if c.Address == "" || !constant {
		return nil // it is known for an upstream only
	}
	addr, err := monitor.ParseAddress(text)
	if err != nil && redact.HasPlaceholder(c.Address) {
		return monitor.ErrAddress(c.Address) // what it stands for may be secret
	}
	if err != nil {
		return err
	}
	return c.secrets.Error(c.checkPort(addr))
}

// equal reports whether another check, resolved like this one, is the same, whatever
// its name.
func (c *HealthCheck) equal(other *HealthCheck) bool {
	return c.resolved.Identity == other.resolved.Identity && c.resolved.Settings == other.resolved.Settings &&
		c.Port == other.Port && c.Address == other.Address && c.ProxyProtocol == other.ProxyProtocol &&
		c.KeepConnection == other.KeepConnection
}

// hasNameOf reports whether another check has the same name, if it has any.
func (c *HealthCheck) hasNameOf(other *HealthCheck) bool { return c.Name != "" && c.Name == other.Name }

// differs returns an error if the check is the same as one of those before it, or has its
// name. Both are described as the config has them: this check, and another by its index.
func (c *HealthCheck) differs(before []*HealthCheck, this string, other func(i int) string) error {
	if i := slices.IndexFunc(before, c.equal); i >= 0 {
		return fmt.Errorf("%s is the same as %s", this, other(i))
	}
	if i := slices.IndexFunc(before, c.hasNameOf); i >= 0 {
		return fmt.Errorf("%s has the name of %s: %s", this, other(i), c.Name)
	}
	return nil
}

// checkPort rejects a port beside an address that has one, or is a unix socket.
func (c *HealthCheck) checkPort(addr caddy.NetworkAddress) error {
	if c.Port != "" && (addr.IsUnixNetwork() || addr.StartPort != 0) {
		return monitor.ErrPortTwice(c.Address)
	}
	return nil
}

// defaultHost returns the Host of requests that name none: that of proxied requests if the
// handler sets a constant one. It is empty for the address that is probed, and for checks
// that have another Host or none. The probe need not be loaded yet.
func (c *HealthCheck) defaultHost(h *reverseproxy.Handler) string {
	if uses, ok := kinds.Written(c.ProbeRaw).(probe.DefaultHostUser); ok && uses.UsesDefaultHost() {
		return monitor.ConstantHost(h)
	}
	return ""
}

// probed returns the upstream at the end of a route, as probers see it.
func probed(r *monitor.Route) probe.Upstream {
	up := probe.Upstream{Address: r.Address, At: r.At, Scheme: r.Scheme, Host: r.Host, DefaultHost: r.DefaultHost, Transport: r.RoundTripper, Placeholders: r.Placeholder}
	if r.CanDial() {
		up.Dial, up.DialTLS = r.Dial, r.DialTLS
	}
	return up
}

// validate reports why the check cannot work for an upstream, if it cannot.
func (c *HealthCheck) validate(r *monitor.Route) error {
	if v, ok := c.prober.(probe.UpstreamValidator); ok {
		return v.ValidateUpstream(probed(r))
	}
	return nil
}

// bind returns what probes an upstream.
func (c *HealthCheck) bind(r *monitor.Route) monitor.ProbeFunc {
	up := probed(r)
	return func(ctx context.Context) (draining bool, err error) {
		if err = c.prober.Probe(ctx, up); errors.Is(err, probe.ErrDraining) {
			return true, nil
		}
		return false, c.secrets.Error(err)
	}
}

// resolve returns the settings with all defaults, or what is wrong with them.
func (c *HealthCheck) resolve() (health.Settings, error) {
	set := health.Settings{
		Interval:     time.Duration(c.Interval),
		FastInterval: time.Duration(c.FastInterval),
		DownInterval: time.Duration(c.DownInterval),
		Timeout:      time.Duration(c.Timeout),
		Passes:       c.Passes,
		Fails:        c.Fails,
	}
	for _, option := range []struct {
		name            string
		value, shortest time.Duration
	}{
		{"interval", set.Interval, limits.MinInterval},
		{"fast_interval", set.FastInterval, limits.MinInterval},
		{"down_interval", set.DownInterval, limits.MinInterval},
		{"timeout", set.Timeout, limits.MinTimeout},
	} {
		if option.value == 0 {
			continue // its default
		}
		if err := limits.Duration(option.name, option.value, option.shortest, limits.MaxDuration); err != nil {
			return set, err
		}
	}
	if err := limits.Count("passes", c.Passes); err != nil {
		return set, err
	}
	if err := limits.Count("fails", c.Fails); err != nil {
		return set, err
	}
	orDefault(&set.Interval, 5*time.Second)
	orDefault(&set.FastInterval, min(time.Second, set.Interval))
	orDefault(&set.DownInterval, set.Interval)
	orDefault(&set.Timeout, 2*time.Second)
	orDefault(&set.Passes, 2)
	orDefault(&set.Fails, 3)
	if set.FastInterval > set.Interval {
		return set, fmt.Errorf("fast_interval (%s) must not be longer than interval (%s)", set.FastInterval, set.Interval)
	}
	set.Jitter = 0.1
	if c.Jitter != "" {
		percent, err := limits.Percent("jitter", c.Jitter)
		if err != nil {
			return set, err
		}
		set.Jitter = percent / 100
	}
	return set, nil
}

func orDefault[T time.Duration | int](value *T, otherwise T) {
	if *value == 0 {
		*value = otherwise
	}
}

// A label is what operators see of a check: its name, or what its kind says of
// itself with the options that tell checks of one upstream apart. Everything in it
// is shown as it is written, so placeholders stay, and what they stand for does not
// show.

// defaultLabel returns the label of a check without a name. The probe need not be loaded
// yet.
func (c *HealthCheck) defaultLabel() string {
	label := kinds.Label(c.resolved.Kind, kinds.Written(c.ProbeRaw))
	if c.resolved.DefaultHost != "" {
		label += " Host " + c.resolved.DefaultHost
	}
	if c.Address != "" {
		label += " address " + c.Address
	}
	if c.Port != "" {
		label += " port " + string(c.Port)
	}
	return label
}

// labelChecks gives each check its label. Names are different. Default labels that
// several checks have are numbered in the order of the config.
func labelChecks(checks []*HealthCheck) {
	taken := make(map[string]bool)
	for _, c := range checks {
		if c.Name != "" {
			taken[c.Name], c.resolved.Label = true, c.Name
		}
	}
	for _, c := range checks {
		if c.Name != "" {
			continue
		}
		label := c.resolved.Label
		for n := 2; taken[c.resolved.Label]; n++ {
			c.resolved.Label = fmt.Sprintf("%s #%d", label, n)
		}
		taken[c.resolved.Label] = true
	}
}
