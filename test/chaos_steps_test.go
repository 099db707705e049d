// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"math/rand/v2"
	"strings"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// sites is a config of the pool. Requests for /retried have enough retries to try every
// upstream once; all others have none.
func (p *chaosPool) sites() string {
	var addrs, options []string
	for _, u := range p.all {
		addrs = append(addrs, u.Addr)
		options = append(options, fmt.Sprintf("weight %s %d", u.Addr, u.own))
		if u.group > 0 { // one in each
			options = append(options, "backup "+u.Addr)
		}
	}
	if p.ramps {
		options = append(options, "slow_start "+chaosRamp.String())
	}
	if p.spills() > 0 {
		options = append(options, fmt.Sprintf("spill %d%%", p.spills()))
	}
	if p.limit > 0 {
		options = append(options, fmt.Sprintf("max_requests %d", p.limit))
	}
	if p.queues {
		options = append(options, "queue 20s")
	}
	if p.sticky {
		options = append(options, "sticky {\n\t\t\t\t\tsecret "+chaosSecret+"\n\t\t\t\t}")
	}
	core := ""
	if p.all[0].core {
		core = "health_uri " + coreCheck + "\n\t\t\thealth_interval 50ms\n\t\t\thealth_timeout 500ms"
	}
	proxy := fmt.Sprintf(`reverse_proxy %s {
			lb_policy alive {
				name chaos
				check %s {
					interval %s
					fast_interval %s
					timeout %s
				}
				%s
				fail_open %s
				retries off
				eject 3 {
					for 200ms %s
					share 60%%
				}
			}
			%s
			transport http {
				response_header_timeout 2s
				keepalive off
			}`, strings.Join(addrs, " "), p.all[0].check, chaosInterval, chaosFast, chaosTimeout,
		strings.Join(options, "\n\t\t\t\t"), p.failOpen, chaosEjected, core)
	return fmt.Sprintf(`
http:// {
	header Version %d
	handle /retried {
		%s
			lb_retries %d
			lb_retry_match {
				method GET
			}
			lb_retry_match {
				method GET
				expression `+"`{rp.status_code} == 502`"+`
			}
		}
	}
	handle {
		%s
		}
	}
}`, p.version, proxy, len(p.all)-1, proxy)
}

// other returns one of the choices, different from the current one.
func other[T comparable](chance *rand.Rand, was T, choices ...T) T {
	for {
		if one := choices[chance.IntN(len(choices))]; one != was {
			return one
		}
	}
}

// step draws what happens next, and changes the model. It returns a description and a
// function that does it.
func (p *chaosPool) step(chance *rand.Rand) (what string, do func(*testkit.Caddy)) {
	u := p.all[chance.IntN(len(p.all))]
	patch := func(format string, args ...any) func(*testkit.Caddy) {
		return func(c *testkit.Caddy) { c.Patch(u.Addr, fmt.Sprintf(format, args...)) }
	}
	reload := func(c *testkit.Caddy) { c.Load(p.sites()) }
	switch draw := chance.IntN(24); draw {
	case 0, 1, 2, 3, 4, 19, 20, 21:
		u.conduct = other(chance, u.conduct, testkit.Well, testkit.Well, testkit.Well, testkit.Sick, testkit.Sick, testkit.Sick, testkit.Sick, testkit.Refusing, testkit.Refusing, testkit.Resetting, testkit.Resetting, testkit.Hanging, testkit.Shallow, testkit.Shallow, testkit.Shallow)
		return fmt.Sprintf("%s behaves like %d", u.Name, u.conduct), func(*testkit.Caddy) { u.Backend.Set(u.conduct) }
	case 5, 6, 22:
		u.mode = other(chance, u.mode, "ready", "ready", "drain", "drain", "maintenance")
		u.rebind = u.mode == "drain" && chance.IntN(2) == 0
		if u.rebind {
			return u.Name + ": drain, and its clients move", patch(`{"mode": "drain", "rebind": true}`)
		}
		return fmt.Sprintf("%s: %s", u.Name, u.mode), patch(`{"mode": %q}`, u.mode)
	case 7, 23:
		if u.set = other(chance, u.set, -1, 0, 1, 2); u.set < 0 {
			return u.Name + ": weight as in the config", patch(`{"weight": null}`)
		}
		return fmt.Sprintf("%s: weight %d", u.Name, u.set), patch(`{"weight": %d}`, u.set)
	case 12, 13:
		u.shunned.Store(!u.shunned.Load())
		return fmt.Sprintf("%s fails the checks of Caddy itself: %v", u.Name, u.shunned.Load()), func(*testkit.Caddy) {}
	default:
		p.version++
		p.joined, p.unsure = 0, false // a new config begins anew
		switch draw {
		case 8:
			p.failOpen = other(chance, p.failOpen, "none_up", "off", "50%", "100%", "2")
			return "reload with fail_open " + p.failOpen, reload
		case 9:
			check := other(chance, u.check, "http /healthz", "http /healthz/deep", "http /")
			for _, u := range p.all {
				u.check = check
			}
			return "reload with check " + check, reload
		case 10:
			p.ramps = !p.ramps
			return fmt.Sprintf("reload with slow start: %v", p.ramps), reload
		case 14:
			for _, u := range p.all {
				u.core = !u.core && mayCheckItself
			}
			return fmt.Sprintf("reload with checks of Caddy itself: %v", u.core), reload
		case 15:
			p.sticky = !p.sticky
			return fmt.Sprintf("reload with sticky: %v", p.sticky), reload
		case 16, 17:
			p.drawLimit(other(chance, p.limit, 0, chaosLimit, chaosRoom))
			return fmt.Sprintf("reload with a limit of %d, queue: %v", p.limit, p.queues), reload
		case 18:
			p.spill = other(chance, p.spill, 0, 40, 70, 100)
			return fmt.Sprintf("reload with spill %d%%", p.spill), reload
		default:
			return "reload", reload
		}
	}
}

const (
	// chaosLimit is a limit at which requests queue, and chaosRoom one that the clients of the
	// test do not reach by themselves.
	chaosLimit = 2
	chaosRoom  = 20
)

// drawLimit sets the limit. At the lower one, requests wait.
func (p *chaosPool) drawLimit(limit int) { p.limit, p.queues = limit, limit == chaosLimit }
