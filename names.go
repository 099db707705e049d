// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/limits"
	"github.com/caddy-alive/caddy-alive/internal/monitor"
	"github.com/caddy-alive/caddy-alive/internal/placeholder"
	"github.com/caddy-alive/caddy-alive/internal/redact"
	"github.com/caddy-alive/caddy-alive/internal/suggest"
	"github.com/caddy-alive/caddy-alive/internal/view"
)

// canSelect reports whether a policy can pick among the upstreams alive.
func canSelect(policy string) bool { return slices.Contains(selectable(), policy) }

// errCannotSelect is the error for a policy that cannot.
func errCannotSelect(policy string) error {
	return fmt.Errorf("select takes one of the selection policies %s; got '%s'%s", strings.Join(selectable(), ", "), policy, suggest.DidYouMean(policy, selectable()))
}

// countsPositions reports whether any policy in the JSON of another one, such as its
// fallback, counts the positions of a pool. Those would be other upstreams whenever one
// goes down.
func countsPositions(policy json.RawMessage) bool {
	var value any
	if err := json.Unmarshal(policy, &value); err != nil {
		return false // which never loads
	}
	return nests(value)
}

func nests(value any) bool {
	switch value := value.(type) {
	case map[string]any:
		if value["policy"] == positional {
			return true
		}
		for _, v := range value {
			if nests(v) {
				return true
			}
		}
	case []any:
		return slices.ContainsFunc(value, nests)
	}
	return false
}

// positional is the policy that counts the positions of a pool.
const positional = "weighted_round_robin"

// errPositional is the error for a policy that uses it.
var errPositional = errors.New(positional + " cannot be a fallback either: it counts the positions of the whole pool, and gets those alive only; weights are an option of lb_policy alive, without select")

// selectable lists the policies that can pick among the upstreams alive: all
// but this one, and weighted_round_robin, which counts the positions of a pool.
func selectable() []string {
	var names []string
	for _, info := range caddy.GetModules("http.reverse_proxy.selection_policies") {
		if name := info.ID.Name(); name != "alive" && name != positional {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// Weight is a share of the requests, in proportion to the weights of the other
// upstreams: a whole number from 0 to 256, or a text with global placeholders, such
// as `{env.WEIGHT}`, that stand for one when the config is loaded.
type Weight string

// UnmarshalJSON reads a number, or a text with a placeholder.
func (w *Weight) UnmarshalJSON(data []byte) error {
	if number, err := strconv.Atoi(string(data)); err == nil {
		*w = Weight(strconv.Itoa(number))
		return nil
	}
	var text string
	if err := json.Unmarshal(data, &text); err != nil || !redact.HasPlaceholder(text) {
		return limits.ErrWeight(string(data), `or a text with a placeholder, like "{env.WEIGHT}"`)
	}
	*w = Weight(text)
	return nil
}

// MarshalJSON writes a number as one, and a text with a placeholder as a text.
func (w Weight) MarshalJSON() ([]byte, error) {
	if number, err := strconv.Atoi(string(w)); err == nil {
		return strconv.AppendInt(nil, int64(number), 10), nil
	}
	return json.Marshal(string(w))
}

// resolve returns the number, or what is wrong with it.
func (w Weight) resolve() (int, error) {
	if !redact.HasPlaceholder(string(w)) {
		return limits.ParseWeight(string(w), "")
	}
	text, err := caddy.NewReplacer().ReplaceOrErr(string(w), true, true)
	if err != nil {
		return 0, fmt.Errorf("%v; only global placeholders, such as {env.*}, can stand for a weight", err)
	}
	number, err := limits.ParseWeight(text, "")
	if err != nil { // shown as written: what it stands for may be secret, if it is the wrong one
		return 0, limits.ErrWeight(string(w), "also with its placeholders replaced")
	}
	return number, nil
}

// weightFromText reads a weight of a Caddyfile.
func weightFromText(text string) (Weight, error) {
	if redact.HasPlaceholder(text) {
		return Weight(text), nil // what it stands for is known when the config is loaded
	}
	number, err := limits.ParseWeight(text, "")
	if err != nil {
		return "", err
	}
	return Weight(strconv.Itoa(number)), nil
}

// Port is where a check probes an upstream: a port, such as `8081`; a text with a plus,
// such as `+1000`, for a port that is so much above that of each upstream; or a text with
// placeholders that stand for one of them.
type Port string

// UnmarshalJSON reads a number or a text. What is wrong with it is known when the config
// is loaded.
func (p *Port) UnmarshalJSON(data []byte) error {
	text := string(data)
	if err := json.Unmarshal(data, &text); err != nil && data[0] == '"' {
		return err
	}
	if text == "0" || text == "null" {
		text = ""
	}
	*p = portFromText(text)
	return nil
}

// MarshalJSON writes a port as a number, and other forms as a text.
func (p Port) MarshalJSON() ([]byte, error) {
	if number, added, err := limits.Port(string(p)); err == nil && !added {
		return strconv.AppendInt(nil, int64(number), 10), nil
	}
	return json.Marshal(string(p))
}

// check returns an error if the text is none of the forms of a port.
func (p Port) check() error {
	if p == "" || redact.HasPlaceholder(string(p)) {
		return placeholder.Check("port", string(p))
	}
	_, _, err := limits.Port(string(p))
	return err
}

// portFromText returns a port in one form for all ways to write it.
func portFromText(text string) Port {
	switch number, added, err := limits.Port(text); {
	case err != nil:
		return Port(text)
	case added:
		return Port("+" + strconv.Itoa(number))
	default:
		return Port(strconv.Itoa(number))
	}
}

// dialNames are the names by which an option means upstreams, by dial address.
type dialNames map[string]string

// add records that an option means an upstream by a name, and returns an error if it
// means the same one by another name, too.
func (n *dialNames) add(dial, name string) error {
	if other, given := (*n)[dial]; given && other != name {
		return fmt.Errorf("%s and %s are the same upstream", other, name)
	}
	if *n == nil {
		*n = make(dialNames)
	}
	(*n)[dial] = name
	return nil
}

// listedUpstreams are those that the config lists: dial address to address as operators see it.
type listedUpstreams struct {
	proxy     *reverseproxy.Handler
	addresses map[string]string
}

// listUpstreams returns those of a handler.
func listUpstreams(h *reverseproxy.Handler) (listedUpstreams, error) {
	listed := listedUpstreams{h, make(map[string]string)}
	for _, u := range h.Upstreams {
		address := monitor.DisplayAddress(u.Dial)
		if err := monitor.CheckSpaces(address); err != nil {
			return listed, fmt.Errorf("upstream %s: %v", u.Dial, err)
		}
		listed.addresses[u.Dial] = address
	}
	return listed, nil
}

// weights returns the weights that are configured, by dial address.
func (l listedUpstreams) weights(configured map[string]Weight) (map[string]int, error) {
	var names dialNames
	weights := make(map[string]int)
	for _, name := range slices.Sorted(maps.Keys(configured)) {
		dials, err := l.resolveName(name)
		if err != nil {
			return nil, err
		}
		weight, err := configured[name].resolve()
		if err != nil {
			return nil, fmt.Errorf("%s: %v", name, err)
		}
		for _, dial := range dials {
			if err := names.add(dial, name); err != nil {
				return nil, err
			}
			weights[dial] = weight
		}
	}
	if l.isAllListed(func(dial string) bool { weight, given := weights[dial]; return given && weight == 0 }) {
		return nil, errors.New("every upstream has the weight 0, so none would ever get a request; give at least one a weight above 0")
	}
	return weights, nil
}

// backups returns the upstreams that are configured as backups, by dial address.
func (l listedUpstreams) backups(configured []string) (map[string]bool, error) {
	var names dialNames
	backups := make(map[string]bool)
	for _, name := range configured {
		dials, err := l.resolveName(name)
		if err != nil {
			return nil, err
		}
		for _, dial := range dials {
			if err := names.add(dial, name); err != nil {
				return nil, err
			}
			backups[dial] = true
		}
	}
	if len(configured) > 0 && l.isAllListed(func(dial string) bool { return backups[dial] }) {
		return nil, errors.New("every upstream is a backup; at least one must be a primary")
	}
	return backups, nil
}

// isAllListed reports whether there are only listed upstreams, and something is true of
// each.
func (l listedUpstreams) isAllListed(is func(dial string) bool) bool {
	if len(l.addresses) == 0 || l.proxy.DynamicUpstreamsRaw != nil {
		return false
	}
	for dial := range l.addresses {
		if !is(dial) {
			return false
		}
	}
	return true
}

// resolveName returns the dial addresses that an option means by a name: what stands in
// the list, another way to write it, or what its placeholders stand for.
func (l listedUpstreams) resolveName(name string) ([]string, error) {
	if len(l.addresses) == 0 {
		return nil, fmt.Errorf("%s: weight and backup can name only upstreams in the list of reverse_proxy, which is empty", name)
	}
	dials, err := l.matching(name)
	if resolved := monitor.DisplayAddress(name); len(dials) == 0 && err == nil && resolved != name {
		if resolved == "" {
			return nil, fmt.Errorf("%s: its placeholders are empty", name)
		}
		dials, err = l.matching(resolved)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %v", name, err)
	}
	if len(dials) == 0 {
		known := make([]string, 0, len(l.proxy.Upstreams))
		for _, u := range l.proxy.Upstreams {
			known = append(known, u.Dial)
		}
		return nil, fmt.Errorf("%s is not one of the upstreams, which are %s%s", name, strings.Join(view.Few(known), ", "), suggest.DidYouMean(name, known))
	}
	return dials, nil
}

// matching returns the dial addresses that a name means: all of a range of ports, or none.
func (l listedUpstreams) matching(name string) ([]string, error) {
	meant, err := dialAddresses(name)
	if err != nil {
		return nil, err
	}
	var dials []string
	for _, dial := range meant {
		if _, listed := l.addresses[dial]; listed {
			dials = append(dials, dial)
			continue
		}
		found := false
		for _, listed := range slices.Sorted(maps.Keys(l.addresses)) {
			// an address without a port is not the one with Caddy's default
			if address := l.addresses[listed]; address == dial || address == name {
				dials, found = append(dials, listed), true
			}
		}
		if !found {
			return nil, nil
		}
	}
	return dials, nil
}

// dialAddresses returns what Caddy makes of an upstream as the reverse_proxy directive
// names it: app1 is app1:80, https://app1 is app1:443, and a range of ports is all of
// them. Caddy's own parser says so.
func dialAddresses(name string) ([]string, error) {
	var h reverseproxy.Handler
	tokens := []caddyfile.Token{{Text: "reverse_proxy", Line: 1}, {Text: name, Line: 1}}
	if err := h.UnmarshalCaddyfile(caddyfile.NewDispenser(tokens)); err != nil || name == "" {
		return nil, errors.New("not an address that reverse_proxy accepts")
	}
	dials := make([]string, 0, len(h.Upstreams))
	for _, u := range h.Upstreams {
		if err := monitor.CheckSpaces(u.Dial); err != nil {
			return nil, err
		}
		dials = append(dials, u.Dial)
	}
	return dials, nil
}

// addressesOf returns the addresses that an option means by a name.
func addressesOf(name string) []string {
	name = monitor.DisplayAddress(name)
	if dials, err := dialAddresses(name); err == nil {
		return dials
	}
	return []string{name} // an error, as soon as it is provisioned
}
