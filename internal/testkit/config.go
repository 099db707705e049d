// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
)

// Validate adapts a Caddyfile and loads what comes of it, without running it.
func Validate(t *testing.T, name, text string) ([]caddyconfig.Warning, error) {
	t.Helper()
	adapted, warnings, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(text), map[string]any{"filename": name})
	if err != nil {
		return nil, err
	}
	var config *caddy.Config
	if err := json.Unmarshal(adapted, &config); err != nil {
		return nil, err
	}
	return warnings, ValidateConfig(t, config)
}

// ValidateConfig loads a config without running it.
func ValidateConfig(t *testing.T, config *caddy.Config) error {
	t.Helper()
	// keep what a config loads by itself away from the user's own files
	config.StorageRaw = caddyconfig.JSONModuleObject(map[string]string{"root": t.TempDir()}, "module", "file_system", nil)
	return caddy.Validate(config)
}

// Example returns an example as it can be run here: with these upstreams in place
// of those in it, and at a site of a test.
func Example(t *testing.T, name string, replace ...string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(Repository(t), "examples", name, "Caddyfile"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.NewReplacer(append(replace, "\nexample.com {", "\nhttp:// {")...).Replace(string(text))
}

// Repository returns the folder of go.mod.
func Repository(tb testing.TB) string {
	tb.Helper()
	dir, err := os.Getwd()
	if err != nil {
		tb.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			tb.Fatal("there is no go.mod above the folder of the test")
		}
		dir = parent
	}
}
