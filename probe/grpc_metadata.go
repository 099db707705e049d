// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/caddy-alive/caddy-alive/internal/placeholder"
	"github.com/caddy-alive/caddy-alive/internal/redact"
)

// binarySuffix is how the names of metadata end whose values are base64.
const binarySuffix = "-bin"

// parseMetadata replaces the global placeholders of metadata, and records their values as
// secrets.
func parseMetadata(header http.Header, secrets *redact.Values) (fields []headerField, err error) {
	for _, name := range slices.Sorted(maps.Keys(header)) {
		for _, value := range header[name] {
			secrets.Learn(value)
			text, err := placeholder.Parse("header "+name, value)
			if err != nil {
				return nil, err
			}
			if constant, ok := text.Constant(); ok {
				if err := checkMetadata(name, constant); err != nil {
					return nil, err
				}
			}
			fields = append(fields, headerField{name, text})
		}
	}
	return fields, nil
}

// addMetadata adds that for an upstream to the header of a call.
func addMetadata(header http.Header, fields []headerField, up Upstream) error {
	for _, field := range fields {
		text, err := field.value.For(up.Placeholders)
		if err != nil {
			return err
		}
		if err := checkMetadata(field.name, text); err != nil {
			return err
		}
		if strings.EqualFold(field.name, "User-Agent") {
			header.Set(field.name, text)
			continue
		}
		header.Add(field.name, text)
	}
	return nil
}

// checkMetadata returns an error if the name or the value cannot be part of the metadata
// of a call. It does not show the value, which may be secret.
func checkMetadata(name, value string) error {
	if err := checkFieldName(name); err != nil {
		return fmt.Errorf("header: %v", err)
	}
	lower := strings.ToLower(name)
	switch lower {
	case "host":
		return errors.New("header Host cannot be set for a grpc check; write authority instead")
	case "content-type", "content-length", "te", "trailer", "transfer-encoding", "connection", "keep-alive", "proxy-connection", "upgrade":
		return fmt.Errorf("header %s cannot be set: it belongs to the protocol", name)
	}
	if strings.HasPrefix(lower, "grpc-") {
		return fmt.Errorf("header %s cannot be set: names that begin with grpc- belong to the protocol", name)
	}
	if strings.HasSuffix(lower, binarySuffix) {
		if _, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(value, "=")); err != nil {
			return fmt.Errorf("header %s must have base64 as its value, because its name ends in %s", name, binarySuffix)
		}
	}
	if strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r > '~' }) {
		return fmt.Errorf("header %s must have printable ASCII characters only in its value", name)
	}
	return nil
}
