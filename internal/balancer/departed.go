// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"maps"
	"sync"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-alive/caddy-alive/internal/pool"
)

// departed are the upstreams of configs that have ended. Caddy serves the requests that they
// have in flight, but where no config has the upstream any more, it does not count them by
// its address.
var departed struct {
	sync.Mutex // guards hosts
	hosts      hosts
}

// hosts are what Caddy counts of upstreams, with the address of each.
type hosts map[*reverseproxy.Host]string

// depart notes the upstreams of balancers that end. Those of earlier ones that have nothing
// in flight any more are dropped.
func depart(balancers []*Balancer) {
	departed.Lock()
	defer departed.Unlock()
	maps.DeleteFunc(departed.hosts, func(host *reverseproxy.Host, _ string) bool { return host.NumRequests() == 0 })
	if departed.hosts == nil {
		departed.hosts = make(hosts)
	}
	for _, b := range balancers {
		departed.hosts.add(b, "")
	}
}

// add adds the upstreams of a balancer with an address, all if it is empty.
func (h hosts) add(b *Balancer, address string) {
	h.addPool(&b.pool, address)
	for _, a := range b.dynamic.answers.all() {
		h.addPool(a.Pool, address)
	}
}

func (h hosts) addPool(p *pool.Pool, address string) {
	upstreams := p.Upstreams()
	for i, m := range p.Members() {
		if host := upstreams[i].Host; host != nil && (address == "" || m.Address == address) {
			h[host] = m.Address
		}
	}
}

// inFlight returns how many requests this process has in flight to an upstream, of whatever
// config.
func inFlight(address string) (n int) {
	found := make(hosts)
	for _, r := range registries() {
		for _, b := range r.All() {
			found.add(b, address)
		}
	}
	departed.Lock()
	for host, of := range departed.hosts {
		if of == address {
			found[host] = of
		}
	}
	departed.Unlock()
	for host := range found {
		n += host.NumRequests()
	}
	return n
}
