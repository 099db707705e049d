// SPDX-License-Identifier: Apache-2.0

package session

import (
	"errors"
	"fmt"
	"strings"
	"unicode"

	"github.com/caddyserver/caddy/v2"
)

// CheckSecret returns an error if a text cannot be a secret as the config has it, with its
// placeholders. No error of a secret shows any of it.
func CheckSecret(written string) error {
	switch {
	case strings.TrimSpace(written) == "":
		return errors.New("sticky: secret must not be empty")
	case strings.ContainsFunc(written, unicode.IsControl):
		return errors.New("sticky: secret must be one line without control characters; only what a placeholder such as {file.*} stands for may have them")
	}
	return nil
}

// ResolveSecret returns a secret with its placeholders replaced.
func ResolveSecret(written string) (string, error) {
	if err := CheckSecret(written); err != nil {
		return "", err
	}
	secret, err := caddy.NewReplacer().ReplaceOrErr(written, true, true)
	switch {
	case err == nil && strings.TrimSpace(secret) != "":
		return secret, nil
	case err == nil:
		return "", errors.New("sticky: secret must not be empty, also with its placeholders replaced")
	case strings.HasPrefix(err.Error(), "evaluated placeholder "): // and so a known one, not a part of the secret
		return "", fmt.Errorf("sticky: secret: %v", err)
	}
	return "", errors.New(`sticky: secret has braces, but not for a placeholder that is known here: only global ones, such as {env.*} and {file.*}, can be used; a brace that begins none is written \{`)
}
