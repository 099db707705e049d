// SPDX-License-Identifier: Apache-2.0

package monitor

import (
	"strings"
	"testing"

	"github.com/caddy-alive/caddy-alive/internal/placeholder"
)

// A check goes to the upstream, or to its own port and address, which may have
// placeholders of the upstream.
func TestRoute_GoesWhereTheCheckSays(t *testing.T) {
	const (
		host     = "{http.reverse_proxy.upstream.host}"
		hostPort = "{http.reverse_proxy.upstream.hostport}"
		port     = "{http.reverse_proxy.upstream.port}"
	)
	for _, test := range []struct{ dial, address, port, at, wrong string }{
		{"app:80", "", "", "app:80", ""},
		{"app:80", "", "8081", "app:8081", ""},
		{"app:80", "", "+1000", "app:1080", ""},
		{"app:64535", "", "+1000", "app:65535", ""},
		{"app:64536", "", "+1000", "", "there is no port 65536"},
		{"app:80", "", port, "app:80", ""},
		{"app:80", "", "1" + port, "app:180", ""},
		{"app:80", "", "+" + port, "app:160", ""},
		{"app:80", "", "9" + port + "0000", "", "port must be a whole number"},
		{"app:80", "side", "", "side:80", ""},
		{"app:80", "side:81", "", "side:81", ""},
		{"app:80", "side", "82", "side:82", ""},
		{"app:80", "side", "+2", "side:82", ""},
		{"app:80", "side:81", "+2", "", "port cannot be combined"},
		{"app:80", "health." + host, "", "health.app:80", ""},
		{"app:80", host + ":9" + port, "", "app:980", ""},
		{"app:80", hostPort, "", "app:80", ""},
		{"app:80", hostPort, "81", "", "port cannot be combined"},
		{"app:80", "unix//run/" + host + ".sock", "", "unix//run/app.sock", ""},
		{"[::1]:80", host + ":81", "", "[::1]:81", ""},
		{"[::1]:80", host, "+1", "[::1]:81", ""},
		{"[::1]:80", hostPort, "", "[::1]:80", ""},
		{"unix//run/app.sock", "", "", "unix//run/app.sock", ""},
		{"unix//run/app.sock", "", "81", "", "no host to probe a port of"},
		{"unix//run/app.sock", "", "+1", "", "a socket without a port"},
		{"unix//run/app.sock", "side", "+1", "", "a socket without a port"},
		{"unix//run/app.sock", "side", "81", "side:81", ""},
		{"unix//run/app.sock", "side", "", "", "no port to probe at that address"},
		{"unix//run/app.sock", hostPort, "81", "", "address must be a host"},
		{"unix//run/app.sock", "unix/" + hostPort, "", "unix//run/app.sock", ""},
	} {
		check := new(Check)
		var errAddress, errPort error
		check.Address, errAddress = placeholder.Parse("address", test.address)
		check.Port, errPort = placeholder.Parse("port", test.port)
		if errAddress != nil || errPort != nil {
			t.Fatal(errAddress, errPort)
		}
		route, err := routeTo(defaultTransport, test.dial, check)
		switch {
		case test.wrong != "":
			if err == nil || !strings.Contains(err.Error(), test.wrong) {
				t.Errorf("%+v: got the error %v", test, err)
			}
		case err != nil:
			t.Errorf("%+v: %v", test, err)
		case route.At != test.at:
			t.Errorf("%+v: got %s", test, route.At)
		}
	}
}
