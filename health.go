// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-alive/caddy-alive/internal/health"
	"github.com/caddy-alive/caddy-alive/internal/limits"
	"github.com/caddy-alive/caddy-alive/internal/redact"
	"github.com/caddy-alive/caddy-alive/internal/shared"
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

	// The port to probe instead of that of the upstream. Whether probes use TLS
	// goes by it, too, if the transport has `except_ports`.
	Port int `json:"port,omitempty"`

	// Where to probe instead: a host, with a port if it is not that of the
	// upstream, or a unix socket, such as `unix//run/app.sock`. All upstreams are
	// probed there.
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

	prober    probe.Prober
	overrides probe.Overrides
	address   *caddy.NetworkAddress // Address, nil if it is that of the upstream
	secrets   redact.Values         // what Address must not show in a reason
	identity  string                // its kind and options, in a form that can be compared
	kind      string
	label     string // as operators see it
	settings  health.Settings
	place     caddyfile.Token // where a Caddyfile has it
}

// defaultCheck is what finds out which upstreams are alive where nothing is configured.
func defaultCheck() *HealthCheck { return &HealthCheck{ProbeRaw: json.RawMessage(`{"kind":"tcp"}`)} }

// provision loads the probe and fills in the defaults.
func (c *HealthCheck) provision(ctx caddy.Context) error {
	if c == nil {
		return errNoProbe()
	}
	kind, identity, err := identify(c.ProbeRaw)
	if err != nil {
		return err
	}
	if err := limits.Name(c.Name); err != nil {
		return err
	}
	c.kind, c.identity = kind, identity
	c.label = c.defaultLabel()
	mod, err := ctx.LoadModule(c, "ProbeRaw")
	if err != nil {
		return fmt.Errorf("loading probe: %v", err)
	}
	prober, ok := mod.(probe.Prober)
	if !ok {
		return fmt.Errorf("loading probe: module alive.probes.%s (%T) cannot probe", kind, mod)
	}
	c.prober = prober
	if o, ok := prober.(probe.Overrider); ok {
		c.overrides = o.Overrides()
	}
	if c.overrides.NoConnection && c.ProxyProtocol != "" {
		return fmt.Errorf("proxy_protocol has no meaning for %s, which makes no connection of its own", kind)
	}
	if err := c.checkConnection(ctx.Logger()); err != nil {
		return err
	}
	if err := c.provisionAddress(); err != nil {
		return err
	}
	c.settings, err = c.resolve()
	return err
}

// provisionAddress resolves where to probe.
func (c *HealthCheck) provisionAddress() error {
	if c.ProxyProtocol != "" {
		if err := limits.ProxyProtocol(c.ProxyProtocol); err != nil {
			return err
		}
	}
	if c.Port != 0 {
		if _, err := limits.Port(strconv.Itoa(c.Port)); err != nil {
			return err
		}
	}
	if c.Address == "" {
		return nil
	}
	text, err := caddy.NewReplacer().ReplaceOrErr(c.Address, true, true)
	if err != nil {
		return fmt.Errorf("address: %v; only global placeholders, such as {env.*}, can be used in a check", err)
	}
	addr, err := parseProbeAddress(text)
	if err != nil {
		if hasPlaceholder(c.Address) {
			return errProbeAddress(c.Address) // what it stands for may be secret
		}
		return err
	}
	c.secrets.Learn(c.Address)
	c.address = &addr
	return c.secrets.Error(c.checkPort(addr))
}

// equal reports whether another check, resolved like this one, is the same, whatever
// its name.
func (c *HealthCheck) equal(other *HealthCheck) bool {
	return c.identity == other.identity && c.settings == other.settings &&
		c.Port == other.Port && c.Address == other.Address && c.ProxyProtocol == other.ProxyProtocol &&
		c.KeepConnection == other.KeepConnection
}

// checkPort rejects a port beside an address that has one, or needs none.
func (c *HealthCheck) checkPort(addr caddy.NetworkAddress) error {
	if c.Port != 0 && (addr.IsUnixNetwork() || addr.StartPort != 0) {
		return fmt.Errorf("port cannot be combined with an address that says it all: %s", c.Address)
	}
	return nil
}

// parseProbeAddress reads where to probe. Without a port, that is 0.
func parseProbeAddress(text string) (caddy.NetworkAddress, error) {
	addr, err := caddy.ParseNetworkAddress(text)
	tcp := addr.Network == "tcp" || addr.Network == "tcp4" || addr.Network == "tcp6"
	if err != nil || checkSpaces(text) != nil || strings.HasSuffix(text, ":0") || addr.Host == "" || addr.PortRangeSize() != 1 || !tcp && addr.Network != "unix" {
		return addr, errProbeAddress(text)
	}
	return addr, nil
}

func errProbeAddress(got string) error {
	return fmt.Errorf("address must be a host, with a port if need be, or a unix socket, like 127.0.0.1:8081 or unix//run/app.sock; got '%s'", got)
}

// where returns the address at which an upstream is probed.
func (c *HealthCheck) where(upstream caddy.NetworkAddress) (caddy.NetworkAddress, error) {
	at := upstream
	if c.address != nil {
		if at = *c.address; at.IsUnixNetwork() || at.StartPort != 0 {
			return at, nil
		}
		at.StartPort, at.EndPort = upstream.StartPort, upstream.EndPort
	}
	if upstream.IsUnixNetwork() || upstream.IsFdNetwork() {
		switch {
		case c.Port == 0 && c.address != nil:
			return at, errors.New("the upstream has no port to probe at that address; add one to it")
		case c.Port != 0 && c.address == nil:
			return at, errors.New("the upstream has no host to probe a port of; name one by address")
		}
	}
	if c.Port != 0 {
		at.StartPort, at.EndPort = uint(c.Port), uint(c.Port)
	}
	return at, nil
}

// identify returns the kind of a probe, and its JSON in one form for all ways
// to write it.
func identify(raw json.RawMessage) (kind, identity string, err error) {
	if len(raw) == 0 {
		return "", "", errNoProbe()
	}
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.UseNumber()
	var options map[string]any
	if err := decoder.Decode(&options); err != nil {
		return "", "", fmt.Errorf("decoding probe: %v", err)
	}
	if kind, _ = options["kind"].(string); kind == "" {
		return "", "", errNoProbe()
	}
	if _, err := caddy.GetModule("alive.probes." + kind); err != nil {
		return "", "", errUnknownKind(kind)
	}
	encoded, err := json.Marshal(options)
	return kind, string(encoded), err
}

func errNoProbe() error {
	return fmt.Errorf("a check needs a probe with one of the kinds %s", knownKinds())
}

// validate reports why the check cannot work for an upstream, if it cannot.
func (c *HealthCheck) validate(to *route) error {
	if v, ok := c.prober.(probe.UpstreamValidator); ok {
		return v.ValidateUpstream(to.up)
	}
	return nil
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
	if c.Passes < 0 {
		return set, errors.New("passes must not be negative")
	}
	if c.Fails < 0 {
		return set, errors.New("fails must not be negative")
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
		percent, err := limits.Percent(c.Jitter)
		if err != nil {
			return set, fmt.Errorf("jitter %v", err)
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

// targetKey says which probes are the same and therefore made once: it is the key of
// shared.Targets.
type targetKey struct {
	routeKey
	probe    string
	settings health.Settings
}

// sharedTarget is a target as the value of a usage pool.
type sharedTarget struct{ *health.Target }

// Destruct has nothing to do: probes ended when the last driver left.
func (sharedTarget) Destruct() error { return nil }

// watch is one upstream under one check, as one policy sees it.
type watch struct {
	check       *HealthCheck
	target      *health.Target
	key         targetKey
	to          *route
	driver      health.Driver
	unsubscribe func() // nil while not followed
	// past reports whether requests no longer bring the upstream; nil if the handler
	// lists it. It is set before attach.
	past func() bool

	mu     sync.Mutex
	detach func() // nil while not attached
}

// newWatch finds or makes the target for an upstream. Nothing is probed before
// attach.
func newWatch(check *HealthCheck, to *route, logger *zap.Logger, events *announcer) (*watch, error) {
	if err := check.validate(to); err != nil {
		return nil, err
	}
	w := &watch{check: check, to: to, key: targetKey{routeKey: to.key, probe: check.identity, settings: check.settings}}
	found, _, err := shared.Targets.LoadOrNew(w.key, func() (caddy.Destructor, error) {
		return sharedTarget{health.NewTarget(check.settings)}, nil
	})
	if err != nil {
		return nil, err
	}
	w.target = found.(sharedTarget).Target
	tally, err := newCheckTally(newSeriesKey(to.up.Address, check.label))
	if err != nil {
		_, forgetting := shared.Targets.Delete(w.key)
		return nil, errors.Join(err, forgetting)
	}

	prober, up := check.prober, to.up
	duration := checkDuration.WithLabelValues(check.kind)
	// one logger for all of them, for a logger with fields takes more memory than
	// the rest of a target
	fields := []zap.Field{zap.String("upstream", up.Address), zap.String("check", check.label)}
	to.warnGaveUp(logger, fields)
	w.driver = health.Driver{
		Probe: func(ctx context.Context, fresh bool) (draining bool, err error) {
			if fresh {
				to.renew()
			}
			if err = prober.Probe(ctx, up); errors.Is(err, probe.ErrDraining) {
				return true, nil
			}
			return false, withShortage(check.secrets.Error(err))
		},
		Bound: to.bound,
		Probed: func(result health.Result) {
			tally.probed(duration, result)
			if c := logger.Check(zap.DebugLevel, "probed"); c != nil {
				c.Write(fields[0], fields[1], zap.Bool("passed", result.Reason == ""), zap.Duration("duration", result.Took), zap.String("reason", result.Reason))
			}
		},
		Inconclusive: func(why *health.InconclusiveError) {
			tally.void.Add(1)
			inconclusiveWarnings.warn(logger, why, fields...)
		},
		Report: func(change health.Transition) {
			tally.flipped(change)
			past := w.isPast()
			logTransition(logger.With(fields...), change, past)
			if past && change.To == health.Down {
				return // no alarm; that it is healthy is told, since an earlier alarm may go on
			}
			events.flipped(up.Address, check.label, change)
		},
	}
	return w, nil
}

// logTransition writes the one line of a change. Of an upstream that is past it is for
// debugging only.
func logTransition(logger *zap.Logger, change health.Transition, past bool) {
	before := []zap.Field{zap.Stringer("previous", change.From), zap.Duration("previous_duration", change.Lasted)}
	switch {
	case past:
		logger.Debug("upstream changed, but requests no longer bring it",
			append(before, zap.Stringer("status", change.To), zap.Bool("draining", change.Draining), zap.String("reason", change.Reason))...)
	case change.To == health.Down:
		logger.Warn("upstream is down", append(before, zap.String("reason", change.Reason))...)
	case change.From != health.Up:
		if change.Draining {
			before = append(before, zap.Bool("draining", true))
		}
		logger.Info("upstream is up", before...)
	case change.Draining:
		logger.Info("upstream is draining: it asks for no new requests")
	default:
		logger.Info("upstream is no longer draining: it takes new requests")
	}
}

// inconclusiveWarnings are those of this process, as many probes find out the same
// at once.
var inconclusiveWarnings causes

// causes limits warnings: each cause gets one a minute.
type causes struct {
	mu     sync.Mutex
	warned map[string]time.Time // when last, by cause
}

// warn says why results count for nothing.
func (c *causes) warn(logger *zap.Logger, why *health.InconclusiveError, fields ...zap.Field) {
	if !c.due(why.Shortage, time.Now()) {
		return
	}
	logger = logger.With(fields...)
	if why.Shortage != "" {
		logger.Warn("this process has a shortage: probes that fail by it count for nothing as long as it lasts",
			zap.String("shortage", why.Shortage), zap.String("reason", why.Reason))
		return
	}
	logger.Warn("this process runs late, stopped or starved of CPU time: probes that time out meanwhile count for nothing, as many in a row as turn an upstream down",
		zap.Duration("late_by", why.Late))
}

// due reports whether a cause is to be named now. There are as many as the operating
// system has words for.
func (c *causes) due(cause string, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if last, warned := c.warned[cause]; warned && now.Sub(last) < time.Minute {
		return false
	}
	if c.warned == nil {
		c.warned = make(map[string]time.Time)
	}
	c.warned[cause] = now
	return true
}

// follow has changed called whenever the status does.
func (w *watch) follow(changed func()) { w.unsubscribe = w.target.Subscribe(changed) }

// attach starts the probes, the first of them after the delay, or takes over
// those that are running.
func (w *watch) attach(delay time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.detach == nil {
		w.detach = w.target.Attach(w.driver, delay)
	}
}

// release undoes attach. It may wait for a probe to be cut off.
func (w *watch) release() {
	w.mu.Lock()
	detach := w.detach
	w.detach = nil
	w.mu.Unlock()
	if detach != nil {
		detach()
		w.to.close()
	}
}

// forget undoes newWatch and follow.
func (w *watch) forget() error {
	if w.unsubscribe != nil {
		w.unsubscribe()
	}
	_, errTally := shared.CheckCounters.Delete(newSeriesKey(w.to.up.Address, w.check.label))
	_, err := shared.Targets.Delete(w.key)
	return errors.Join(err, errTally)
}

var errNoProxy = errors.New("the selection policy alive works in a reverse_proxy handler only")
