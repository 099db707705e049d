// SPDX-License-Identifier: Apache-2.0

package redact

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

func TestValues_PlaceholdersReplaceTheirValues(t *testing.T) {
	const secret = `p@ss "wörd"/&?` + "\t"
	t.Setenv("REDACT_SECRET", secret)
	t.Setenv("REDACT_LONGER", secret+"more")
	t.Setenv("REDACT_SHORT", "abc")
	t.Setenv("REDACT_UNUSED", "unused")
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("from a file\n"), 0o600); err != nil {
		t.Fatal(err)
	}

	var v Values
	if got := v.Text(secret); got != secret {
		t.Errorf("without placeholders: got %q", got)
	}
	v.Learn("/healthz?token={env.REDACT_SECRET}&{env.REDACT_SHORT}")
	v.Learn(`^{"a": "{env.REDACT_LONGER}{file.` + file + `}{env.REDACT_NONE}"}$`)
	v.Learn("{system.hostname} {http.request.host} {")

	for text, want := range map[string]string{
		"":                                    "",
		"got " + secret:                       "got {env.REDACT_SECRET}",
		secret + secret:                       "{env.REDACT_SECRET}{env.REDACT_SECRET}",
		"got " + secret + "more":              "got {env.REDACT_LONGER}",
		"got " + strconv.Quote(secret):        `got "{env.REDACT_SECRET}"`,
		strings.TrimSpace(secret):             "{env.REDACT_SECRET}",
		"/p%40ss+%22w%C3%B6rd%22%2F%26%3F%09": "/{env.REDACT_SECRET}",
		"/p@ss%20%22w%C3%B6rd%22%2F&%3F%09":   "/{env.REDACT_SECRET}",
		"/p@ss%20%22w%C3%B6rd%22/&%3F%09":     "/{env.REDACT_SECRET}",
		"it is from a file.":                  "it is {file." + file + "}.",
		"abc unused":                          "abc unused",
	} {
		if got := v.Text(text); got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}

func TestValues_CutNeverEndsInsideAValue(t *testing.T) {
	t.Setenv("REDACT_SECRET", "secret-value")
	var v Values
	v.Learn("{env.REDACT_SECRET}")
	for before := range 70 {
		text := strings.Repeat("x", before) + "secret-value" + strings.Repeat("y", 100)
		got, more := v.Cut([]byte(text), 64)
		if strings.Contains(got, "sec") || len(got) > 64 || !more {
			t.Errorf("after %d bytes: got %q, %t", before, got, more)
		}
	}
	// A value before it gets shorter when it is replaced.
	t.Setenv("REDACT_LONG", strings.Repeat("L", 100))
	v.Learn("{env.REDACT_LONG}")
	for between := range 120 {
		text := strings.Repeat(strings.Repeat("L", 100), 2) + strings.Repeat("x", between) + "secret-value" + strings.Repeat("y", 500)
		got, more := v.Cut([]byte(text), 64)
		if strings.Contains(got, "sec") || strings.Contains(got, "LL") || len(got) > 64 || !more {
			t.Errorf("with %d bytes between: got %q, %t", between, got, more)
		}
	}
	for text, want := range map[string]bool{"": false, strings.Repeat("x", 64): false, strings.Repeat("x", 65): true} {
		if got, more := v.Cut([]byte(text), 64); more != want || got != text[:min(64, len(text))] {
			t.Errorf("%d bytes: got %d bytes, %t", len(text), len(got), more)
		}
	}
}

func TestValues_ErrorsStayRecognizable(t *testing.T) {
	t.Setenv("REDACT_SECRET", "secret-value")
	var v Values
	if err := v.Error(io.EOF); err != io.EOF {
		t.Errorf("got %v", err)
	}
	v.Learn("{env.REDACT_SECRET}")
	if err := v.Error(nil); err != nil {
		t.Errorf("got %v", err)
	}
	if err := v.Error(io.EOF); err != io.EOF {
		t.Errorf("got %v", err)
	}
	err := v.Error(fmt.Errorf("reading secret-value: %w", io.ErrUnexpectedEOF))
	if got, want := err.Error(), "reading {env.REDACT_SECRET}: unexpected EOF"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error("the error is another one")
	}
}
