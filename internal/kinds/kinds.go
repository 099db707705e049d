// SPDX-License-Identifier: Apache-2.0

// Package kinds has what is known of the kinds of checks of a build by their modules
// alone: their names, and what a kind says of a check before it is loaded.
//
// It must not know any kind, nor the interface of kinds. It has no state.
package kinds

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-alive/caddy-alive/internal/suggest"
)

// Namespace is that of the modules of kinds.
const Namespace = "alive.probes"

// Names returns the kinds of check that this build has.
func Names() []string {
	modules := caddy.GetModules(Namespace)
	names := make([]string, 0, len(modules))
	for _, info := range modules {
		names = append(names, info.ID.Name())
	}
	slices.Sort(names)
	return names
}

// List lists the kinds of check that this build has, for a message.
func List() string { return strings.Join(Names(), ", ") }

// Identify returns the kind of a probe, and its JSON in one form for all ways
// to write it.
func Identify(raw json.RawMessage) (kind, identity string, err error) {
	if len(raw) == 0 {
		return "", "", ErrNone()
	}
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.UseNumber()
	var options map[string]any
	if err := decoder.Decode(&options); err != nil {
		return "", "", fmt.Errorf("decoding probe: %v", err)
	}
	if kind, _ = options["kind"].(string); kind == "" {
		return "", "", ErrNone()
	}
	if _, err := Module(kind); err != nil {
		return "", "", err
	}
	encoded, err := json.Marshal(options)
	return kind, string(encoded), err
}

// Module returns the module of a kind.
func Module(kind string) (caddy.ModuleInfo, error) {
	info, err := caddy.GetModule(Namespace + "." + kind)
	if err != nil {
		return info, fmt.Errorf("unknown kind of check '%s'; this build has %s%s", kind, List(), suggest.Kind(kind, Names()))
	}
	return info, nil
}

// ErrNone is the error for a check without a kind of probe.
func ErrNone() error {
	return errors.New("a check needs a probe with one of the kinds " + List())
}

// Written returns a probe that is not provisioned, so that it has its options as they
// are written. It is nil if it cannot be loaded.
func Written(raw json.RawMessage) any {
	kind, _, err := Identify(raw)
	if err != nil {
		return nil
	}
	info, err := Module(kind)
	if err != nil {
		return nil
	}
	written := info.New()
	if err := json.Unmarshal(raw, written); err != nil {
		return nil
	}
	return written
}

// Label returns what a kind of probe says of its own options, which is at least its name.
func Label(kind string, written any) string {
	if s, ok := written.(fmt.Stringer); ok {
		return strings.ToValidUTF8(s.String(), "\uFFFD")
	}
	return kind
}
