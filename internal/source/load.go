// SPDX-License-Identifier: Apache-2.0

package source

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/limits"
)

// Loaded is a dynamic source that is loaded in place of the handler.
type Loaded interface {
	reverseproxy.UpstreamSource
	Close() error
}

// Load loads the dynamic source that a handler has, given as JSON. Stale is how long its
// last answer is used while it fails: 0 not at all, and nil for the default, which
// concerns `dynamic a` and `dynamic srv` whose names depend on no request. It returns nil
// if the handler is to load the source itself, since its last answer is never used.
func Load(ctx caddy.Context, raw json.RawMessage, stale *time.Duration, logger *zap.Logger) (Loaded, error) {
	if stale != nil {
		if err := limits.Stale(*stale); err != nil {
			return nil, err
		}
		if raw == nil {
			return nil, errors.New("stale has no meaning without a dynamic source: it is how long the last answer of one is used while the source fails; " +
				"add a source, like dynamic a, or remove stale")
		}
	}
	l := loader{ctx: ctx, stale: stale, logger: logger}
	if used, err := l.uses(raw); err != nil || !used {
		return nil, err
	}
	inner, err := l.load(raw)
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	if s, ok := inner.(*Source); ok {
		return s, nil
	}
	return &aggregate{l.sources, inner}, nil
}

// loader loads a source, and those that it consists of.
type loader struct {
	ctx     caddy.Context
	stale   *time.Duration
	logger  *zap.Logger
	sources []*Source // all that it made
}

// options are those of a dynamic source that matter here.
type options struct {
	Source  string            `json:"source"`
	Service string            `json:"service"`
	Proto   string            `json:"proto"`
	Name    string            `json:"name"`
	Port    string            `json:"port"`
	Sources []json.RawMessage `json:"sources"`
}

// decode returns the options of a source. What is wrong with them is for its module to say.
func decode(raw json.RawMessage) (o options) {
	_ = json.Unmarshal(raw, &o)
	return o
}

// isDNS reports whether it is one of Caddy's sources that look up a name.
func (o options) isDNS() bool { return o.Source == "a" || o.Source == "srv" }

// isMulti reports whether it is Caddy's source that consists of others. It reports no
// failures, so each of the others is what fails.
func (o options) isMulti() bool { return o.Source == "multi" }

// String is what log lines and errors call the source. Which options of others are secret
// is not known.
func (o options) String() string {
	if !o.isDNS() {
		return o.Source
	}
	parts := []string{o.Source}
	for _, part := range []string{o.Service, o.Proto, o.Name, o.Port} {
		if part != "" {
			parts = append(parts, part)
		}
	}
	return strings.Join(parts, " ")
}

// uses reports whether the last answer of a source, or of one of those that it consists
// of, is used.
func (l *loader) uses(raw json.RawMessage) (bool, error) {
	if o := decode(raw); o.isMulti() {
		for _, part := range o.Sources {
			if used, err := l.uses(part); used || err != nil {
				return used, err
			}
		}
		return false, nil
	}
	stale, err := l.staleOf(raw)
	return stale != 0, err
}

// staleOf returns how long the last answer of a source is used, which is no multi.
func (l *loader) staleOf(raw json.RawMessage) (time.Duration, error) {
	o := decode(raw)
	found := findPlaceholders(raw, o.isDNS())
	switch {
	case l.stale == nil && o.isDNS() && found.ofRequest == "":
		return limits.DefaultStale, nil
	case l.stale == nil || *l.stale == 0:
		return 0, nil
	case found.ofRequest != "":
		return 0, fmt.Errorf("stale cannot be combined with the dynamic source '%s': its placeholder {%s} can depend on the request, and then the last answer is of no use for other requests; "+
			"only global placeholders, such as {env.*}, are allowed; write stale off, or remove stale", o, found.ofRequest)
	}
	return *l.stale, nil
}

// load loads a source.
func (l *loader) load(raw json.RawMessage) (reverseproxy.UpstreamSource, error) {
	if decode(raw).isMulti() {
		return l.loadMulti(raw)
	}
	stale, err := l.staleOf(raw)
	if err != nil {
		return nil, err
	}
	from := struct {
		Raw json.RawMessage `caddy:"namespace=http.reverse_proxy.upstreams inline_key=source"`
	}{raw}
	mod, err := l.ctx.LoadModule(&from, "Raw")
	if err != nil {
		return nil, fmt.Errorf("loading upstream source module: %v", err)
	}
	inner := mod.(reverseproxy.UpstreamSource)
	if stale == 0 {
		return inner, nil
	}
	o := decode(raw)
	s, err := newSource(l.ctx.Context, inner, string(raw), stale, l.logger.With(zap.Stringer("source", o)))
	if err != nil {
		return nil, err
	}
	l.sources = append(l.sources, s)
	isConstant := !findPlaceholders(raw, true).change
	switch inner := inner.(type) {
	case *reverseproxy.AUpstreams:
		s.background, s.refresh = isConstant, time.Duration(inner.Refresh)
	case *reverseproxy.SRVUpstreams:
		// with it, the source hides its failures, and after a retry answers with nothing
		inner.GracePeriod = 0
		s.background, s.refresh = isConstant, time.Duration(inner.Refresh)
	}
	return s, nil
}

// loadMulti loads the sources that one consists of.
func (l *loader) loadMulti(raw json.RawMessage) (reverseproxy.UpstreamSource, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(raw, &fields); err != nil {
		return nil, err
	}
	delete(fields, "source")
	encoded, err := json.Marshal(fields)
	if err != nil {
		return nil, err
	}
	var m reverseproxy.MultiUpstreams
	if err := caddy.StrictUnmarshalJSON(encoded, &m); err != nil {
		return nil, fmt.Errorf("loading upstream source module: decoding multi: %v", err)
	}
	all := multi{logger: l.logger}
	for i, part := range m.SourcesRaw {
		s, err := l.load(part)
		if err != nil {
			return nil, fmt.Errorf("sources: position %d: %v", i, err)
		}
		all.sources = append(all.sources, s)
	}
	return all, nil
}

// Close takes back what was loaded.
func (l *loader) Close() error { return closeAll(l.sources) }

func closeAll(sources []*Source) (err error) {
	for _, s := range sources {
		s.cancel() // so that they end at the same time
	}
	for _, s := range sources {
		err = errors.Join(err, s.Close())
	}
	return err
}

// aggregate is a source that consists of others.
type aggregate struct {
	sources []*Source // all in it
	reverseproxy.UpstreamSource
}

// Close ends what the sources do in the background.
func (a *aggregate) Close() error { return closeAll(a.sources) }

// multi has the upstreams of several sources, as Caddy's own does: those of one that fails
// or has none are left out. Like that one, it resets no cache.
type multi struct {
	sources []reverseproxy.UpstreamSource
	logger  *zap.Logger
}

// GetUpstreams returns the upstreams of all sources.
func (m multi) GetUpstreams(r *http.Request) ([]*reverseproxy.Upstream, error) {
	var all []*reverseproxy.Upstream
	for i, s := range m.sources {
		if r.Context().Err() != nil {
			return all, context.Canceled
		}
		switch upstreams, err := s.GetUpstreams(r); {
		case err != nil:
			m.logger.Error("upstream source returned error", zap.Int("source_idx", i), zap.Error(err))
		case len(upstreams) == 0:
			m.logger.Warn("upstream source returned 0 upstreams", zap.Int("source_idx", i))
		default:
			all = append(all, upstreams...)
		}
	}
	return all, nil
}
