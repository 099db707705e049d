// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-alive/caddy-alive/internal/health"
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

	// The time from the start of one probe to the start of the next while the
	// status is settled. Default: `5s`.
	Interval caddy.Duration `json:"interval,omitempty"`

	// The interval while results in a row speak against the status, and until
	// the upstream was up once. Default: `1s`, or `interval` if that is less.
	FastInterval caddy.Duration `json:"fast_interval,omitempty"`

	// The interval while the upstream is down. Default: `interval`.
	DownInterval caddy.Duration `json:"down_interval,omitempty"`

	// How long one probe may take. Default: `2s`.
	Timeout caddy.Duration `json:"timeout,omitempty"`

	// How many passes in a row bring an upstream back that is down. Default: 2.
	Passes int `json:"passes,omitempty"`

	// How many fails in a row take an upstream down that is up. Default: 3.
	Fails int `json:"fails,omitempty"`

	// By how much intervals are lengthened at random at most, from `0%` to
	// `100%`, so that probes do not all happen at once. Default: `10%`.
	Jitter string `json:"jitter,omitempty"`

	prober   probe.Prober
	identity string // its kind and options, in a form that can be compared
	label    string // its kind and arguments, as people see it
	settings health.Settings
}

// provision loads the probe and fills in the defaults.
func (c *HealthCheck) provision(ctx caddy.Context) error {
	if c == nil {
		return errNoProbe()
	}
	kind, identity, err := identify(c.ProbeRaw)
	if err != nil {
		return err
	}
	mod, err := ctx.LoadModule(c, "ProbeRaw")
	if err != nil {
		return fmt.Errorf("loading probe: %v", err)
	}
	prober, ok := mod.(probe.Prober)
	if !ok {
		return fmt.Errorf("loading probe: module alive.probes.%s (%T) cannot probe", kind, mod)
	}
	c.prober, c.identity, c.label = prober, identity, kind
	if s, ok := prober.(fmt.Stringer); ok {
		c.label = s.String()
	}
	c.settings, err = c.resolve()
	return err
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

func errUnknownKind(kind string) error {
	return fmt.Errorf("unknown kind of check '%s'; this build has %s", kind, knownKinds())
}

// validate reports why the check cannot work for an upstream, if it cannot.
func (c *HealthCheck) validate(to *route) error {
	if v, ok := c.prober.(probe.UpstreamValidator); ok {
		return v.ValidateUpstream(to.up)
	}
	return nil
}

// knownKinds lists the kinds of probe that this build has.
func knownKinds() string {
	modules := caddy.GetModules("alive.probes")
	kinds := make([]string, 0, len(modules))
	for _, info := range modules {
		kinds = append(kinds, info.ID.Name())
	}
	slices.Sort(kinds)
	return strings.Join(kinds, ", ")
}

// maxDuration is the longest that any time of a check can be.
const maxDuration = 24 * time.Hour

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
		name        string
		value, most int64
	}{
		{"interval", int64(c.Interval), int64(maxDuration)},
		{"fast_interval", int64(c.FastInterval), int64(maxDuration)},
		{"down_interval", int64(c.DownInterval), int64(maxDuration)},
		{"timeout", int64(c.Timeout), int64(maxDuration)},
		{"passes", int64(c.Passes), math.MaxInt64},
		{"fails", int64(c.Fails), math.MaxInt64},
	} {
		if option.value < 0 {
			return set, fmt.Errorf("%s must not be negative", option.name)
		}
		if option.value > option.most {
			return set, fmt.Errorf("%s must not be longer than %s", option.name, maxDuration)
		}
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
		percent, err := parsePercent(c.Jitter)
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

// parsePercent returns the number before the sign: 10 for 10%.
func parsePercent(text string) (float64, error) {
	number, ok := strings.CutSuffix(text, "%")
	percent, err := strconv.ParseFloat(number, 64)
	if !ok || err != nil || !(percent >= 0 && percent <= 100) { // so that NaN is out, too
		return 0, fmt.Errorf("must be a percentage from 0%% to 100%%, like 10%%; got '%s'", text)
	}
	return percent, nil
}

// targets are what is probed, by targetKey, for all configs and handlers of
// the process. A target lives while any policy watches it, so what is known of
// it outlives reloads.
var targets = caddy.NewUsagePool()

// targetKey says which probes are the same and therefore made once.
type targetKey struct {
	address   string
	probe     string
	settings  health.Settings
	transport transportKey
}

// sharedTarget is a target as the value of a usage pool.
type sharedTarget struct{ *health.Target }

// Destruct has nothing to do: probes ended when the last driver left.
func (sharedTarget) Destruct() error { return nil }

// watch is one upstream under one check, as one policy sees it.
type watch struct {
	target      *health.Target
	key         targetKey
	driver      health.Driver
	unsubscribe func() // nil while not followed

	mu     sync.Mutex
	detach func() // nil while not attached
}

// newWatch finds or makes the target for an upstream. Nothing is probed before
// attach.
func newWatch(check *HealthCheck, to *route, logger *zap.Logger) (*watch, error) {
	if err := check.validate(to); err != nil {
		return nil, err
	}
	w := &watch{key: targetKey{
		address:   to.info.String(),
		probe:     check.identity,
		settings:  check.settings,
		transport: to.key,
	}}
	shared, _, err := targets.LoadOrNew(w.key, func() (caddy.Destructor, error) {
		return sharedTarget{health.NewTarget(check.settings)}, nil
	})
	if err != nil {
		return nil, err
	}
	w.target = shared.(sharedTarget).Target

	prober, up := check.prober, to.up
	logger = logger.With(zap.String("upstream", up.Address), zap.String("check", check.label))
	w.driver = health.Driver{
		Probe: func(ctx context.Context) error {
			return prober.Probe(to.context(ctx), up)
		},
		Bound: to.bound,
		Probed: func(result health.Result) {
			if c := logger.Check(zap.DebugLevel, "probed"); c != nil {
				c.Write(zap.Bool("passed", result.Reason == ""), zap.Duration("duration", result.Took), zap.String("reason", result.Reason))
			}
		},
		Report: func(change health.Transition) {
			before := []zap.Field{zap.Stringer("previous", change.From), zap.Duration("previous_duration", change.Lasted)}
			if change.To == health.Down {
				logger.Warn("upstream is down", append(before, zap.String("reason", change.Reason))...)
			} else {
				logger.Info("upstream is up", before...)
			}
		},
	}
	return w, nil
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
	}
}

// forget undoes newWatch and follow.
func (w *watch) forget() error {
	if w.unsubscribe != nil {
		w.unsubscribe()
	}
	_, err := targets.Delete(w.key)
	return err
}

var errNoProxy = errors.New("the selection policy alive works in a reverse_proxy handler only")
