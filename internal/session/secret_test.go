// SPDX-License-Identifier: Apache-2.0

package session

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	_ "github.com/caddyserver/caddy/v2/modules/standard"
)

// Placeholders stand for the secret or for a part of it. What they stand for can be any
// bytes, but not nothing.
func TestResolveSecret_ReplacesPlaceholders(t *testing.T) {
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte("\x00\xff\n\x01"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("ALIVE_TEST_SECRET", "hunter2")
	for written, want := range map[string]string{
		"plain":                      "plain",
		" plain ":                    " plain ",
		"{env.ALIVE_TEST_SECRET}":    "hunter2",
		"a-{env.ALIVE_TEST_SECRET}-": "a-hunter2-",
		"{file." + file + "}":        "\x00\xff\n\x01",
		`a\{b\}c`:                    "a{b}c",
		"a{b":                        "a{b",
		"ünïcode":                    "ünïcode",
	} {
		if got, err := ResolveSecret(written); err != nil || got != want {
			t.Errorf("%q: got %q, error %v, want %q", written, got, err, want)
		}
	}
}

// No error shows a secret or a part of it, also not one with braces.
func TestResolveSecret_ErrorsShowNothingOfIt(t *testing.T) {
	file := filepath.Join(t.TempDir(), "blank")
	if err := os.WriteFile(file, []byte(" \n"), 0o600); err != nil {
		t.Fatal(err)
	}
	const (
		empty   = "sticky: secret must not be empty"
		control = "sticky: secret must be one line without control characters; only what a placeholder such as {file.*} stands for may have them"
		braces  = `sticky: secret has braces, but not for a placeholder that is known here: only global ones, such as {env.*} and {file.*}, can be used; a brace that begins none is written \{`
	)
	for written, want := range map[string]string{
		"":                                   empty,
		" \t\n":                              empty,
		"hunter2\n":                          control,
		"hunter2\x00":                        control,
		"\u0085hunter2":                      control,
		"hunter2{env.ALIVE_TEST_UNSET}":      "sticky: secret: evaluated placeholder {env.ALIVE_TEST_UNSET} is empty",
		"hunter2{file." + file + ".missing}": "sticky: secret: evaluated placeholder {file." + file + ".missing} is empty",
		"{file." + file + "}":                "sticky: secret must not be empty, also with its placeholders replaced",
		"{hunter2}":                          braces,
		"x{hunter2}y":                        braces,
		"{http.request.host}":                braces,
		strings.Repeat("{hunter2", 200):      braces,
	} {
		got, err := ResolveSecret(written)
		if err == nil || err.Error() != want {
			t.Errorf("%q: got %q, error %v, want %s", written, got, err, want)
		} else if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: the error has a part of it: %v", written, err)
		}
	}
}
