// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"encoding/json"

	_ "github.com/caddyserver/caddy/v2/modules/standard"

	"github.com/caddy-alive/caddy-alive/internal/view"
)

// parseEntries decodes the list of an answer.
func parseEntries(text []byte) (entries []view.Upstream, err error) {
	err = json.Unmarshal(text, &entries)
	return entries, err
}
