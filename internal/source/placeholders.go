// SPDX-License-Identifier: Apache-2.0

package source

import (
	"encoding/json"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
)

// placeholders says on what the options of a source depend.
type placeholders struct {
	ofRequest string // one that can depend on the request, empty if none does
	change    bool   // whether what they stand for can change while Caddy runs
}

// aName matches what begins like the name of a placeholder where braces can also mean something
// else, such as a count in a regular expression.
var aName = regexp.MustCompile(`^[A-Za-z_]`)

// findPlaceholders looks at all texts in the options of a source. All that stands in braces
// is a placeholder if they are strict.
func findPlaceholders(raw json.RawMessage, strict bool) (found placeholders) {
	var value any
	_ = json.Unmarshal(raw, &value)
	// those that read files are known without that
	known := caddy.NewReplacer().WithoutFile()
	eachText(value, func(text string) {
		_, _ = known.ReplaceFunc(text, func(name string, _ any) (any, error) {
			_, isGlobal := known.Get(name)
			switch {
			case strings.HasPrefix(name, "file."), strings.HasPrefix(name, "time."):
				found.change = true
			case found.ofRequest == "" && !isGlobal && (strict || aName.MatchString(name)):
				found.ofRequest = name
			}
			return "", nil
		})
	})
	return found
}

// DependsOnRequest reports whether the options of a source, given as JSON, name something of the
// request, so that requests can get different upstreams.
func DependsOnRequest(raw json.RawMessage) bool { return findPlaceholders(raw, false).ofRequest != "" }

// eachText calls f for each text in a value of JSON, in the same order each time.
func eachText(value any, f func(text string)) {
	switch value := value.(type) {
	case string:
		f(value)
	case []any:
		for _, element := range value {
			eachText(element, f)
		}
	case map[string]any:
		for _, key := range slices.Sorted(maps.Keys(value)) {
			eachText(value[key], f)
		}
	}
}
