// SPDX-License-Identifier: Apache-2.0

package suggest

import (
	"fmt"
	"net"
	"slices"
	"strings"
)

// mostMeant bounds how many upstreams a hint names.
const mostMeant = 3

// Upstream returns the end of an error about an upstream that is none of the known ones: it
// asks for those that may be meant. It is empty if there are none.
func Upstream(name string, known []string) string {
	meant := closeUpstreams(name, known)
	quoted := make([]string, 0, mostMeant+1)
	for _, upstream := range meant[:min(len(meant), mostMeant)] {
		quoted = append(quoted, "'"+upstream+"'")
	}
	if more := len(meant) - mostMeant; more > 0 {
		quoted = append(quoted, fmt.Sprintf("one of %d more", more))
	}
	switch last := len(quoted) - 1; last {
	case -1:
		return ""
	case 0:
		return fmt.Sprintf("; did you mean %s?", quoted[0])
	default:
		return fmt.Sprintf("; did you mean %s or %s?", strings.Join(quoted[:last], ", "), quoted[last])
	}
}

// closeUpstreams returns the known upstreams that a name may mean, each once, in their order:
// those of the first rule that finds any.
func closeUpstreams(name string, known []string) (meant []string) {
	if len(name) > maxLength || name == "" {
		return nil
	}
	given := parseAddress(name)
	for _, isMeant := range addressRules {
		for _, upstream := range known {
			if len(upstream) <= maxLength && !slices.Contains(meant, upstream) && isMeant(given, parseAddress(upstream)) {
				meant = append(meant, upstream)
			}
		}
		if len(meant) > 0 {
			return meant
		}
	}
	known = slices.DeleteFunc(slices.Clone(known), func(upstream string) bool { return isOtherMachine(given, parseAddress(upstream)) })
	for _, text := range []string{name, net.JoinHostPort(given.host, given.port)} {
		if closest := Close(text, known); closest != "" {
			return alike(text, closest, known)
		}
	}
	return nil
}

// isOtherMachine reports whether both are IP addresses, and not the same: one that differs by a
// digit is no typo, it is another machine.
func isOtherMachine(given, listed address) bool {
	return net.ParseIP(given.host) != nil && net.ParseIP(listed.host) != nil && given.host != listed.host
}

// alike returns the known upstreams, each once, that are as close to a text as the closest one:
// which of several neighbours is meant is not known.
func alike(text, closest string, known []string) (meant []string) {
	given, best := normalize(text), normalize(closest)
	if strings.HasPrefix(string(best), string(given)) {
		return []string{closest} // it is named by its beginning
	}
	least := distance(given, best)
	for _, upstream := range known {
		if len(upstream) <= maxLength && !slices.Contains(meant, upstream) && distance(given, normalize(upstream)) == least {
			meant = append(meant, upstream)
		}
	}
	return meant
}

// addressRules are the ways to name an upstream not quite as it is listed, by what was given and
// what is listed, the surest first.
var addressRules = []func(given, listed address) bool{
	// a scheme, a path or capital letters too much
	func(given, listed address) bool { return given == listed },
	func(given, listed address) bool {
		return given.isLoopback() && listed.isLoopback() && given.port == listed.port
	},
	// a host alone
	func(given, listed address) bool {
		return given.host != "" && given.port == "" && given.host == listed.host
	},
	func(given, listed address) bool { return given.isLoopback() && given.port == "" && listed.isLoopback() },
	// the first part of a host, with the port or alone
	func(given, listed address) bool {
		return given.host != "" && strings.HasPrefix(listed.host, given.host+".") && (given.port == "" || given.port == listed.port)
	},
	// a port alone
	func(given, listed address) bool {
		return given.host == "" && given.port != "" && given.port == listed.port
	},
	// a socket by the end of its path
	func(given, listed address) bool {
		return given.socket != "" && strings.HasSuffix(listed.socket, "/"+strings.TrimPrefix(given.socket, "/"))
	},
}

// address is what an upstream is reached at, or a part of it. What is not known is empty.
type address struct{ host, port, socket string }

// parseAddress reads an address as people write it: with or without a scheme and a path, or a
// port alone.
func parseAddress(text string) address {
	text = strings.ToLower(strings.TrimSpace(text))
	if path, isSocket := strings.CutPrefix(text, "unix"); isSocket && strings.HasPrefix(strings.TrimPrefix(path, ":"), "/") {
		return address{socket: "/" + strings.TrimLeft(path, ":/")}
	}
	if strings.HasPrefix(text, "/") || strings.HasSuffix(text, ".sock") && !strings.Contains(text, "://") {
		return address{socket: text}
	}
	if _, after, hasScheme := strings.Cut(text, "://"); hasScheme {
		text = after
	}
	text, _, _ = strings.Cut(text, "/")
	if isPort(text) {
		return address{port: text}
	}
	if host, port, err := net.SplitHostPort(text); err == nil {
		return address{host: host, port: port}
	}
	return address{host: strings.Trim(text, "[]")}
}

func isPort(text string) bool {
	return text != "" && len(text) <= len("65535") && strings.Trim(text, "0123456789") == ""
}

// isLoopback reports whether an address is on this machine.
func (a address) isLoopback() bool {
	ip := net.ParseIP(a.host)
	return a.host == "localhost" || ip != nil && ip.IsLoopback()
}
