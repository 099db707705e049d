// SPDX-License-Identifier: Apache-2.0

package alive

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"
)

var (
	chaosSteps = flag.Int("chaos", 12, "how many random faults there are")
	chaosSeed  = flag.Uint64("seed", 0, "of the random faults; 0 for another one each time")
)

// chaotic is an upstream as the test knows it. What requests have to do follows from
// that by the rules of the README, told in other words than in the code.
type chaotic struct {
	*backend
	conduct conduct
	mode    mode
	own     int // weight by the config
	set     int // weight set at run time, below 0 for none
	backup  bool
}

func (u *chaotic) weight() int {
	if u.set >= 0 {
		return u.set
	}
	return u.own
}

func (u *chaotic) up() bool       { return u.conduct == well }
func (u *chaotic) ready() bool    { return u.mode == modeReady && u.weight() > 0 }
func (u *chaotic) serves() bool   { return u.ready() && u.up() }
func (u *chaotic) answers() bool  { return u.conduct == well || u.conduct == sick } // sick is what its check says
func (u *chaotic) primary() bool  { return !u.backup }
func (u *chaotic) drained() bool  { return u.mode == modeDrain && u.weight() > 0 && u.up() }
func (u *chaotic) isBackup() bool { return u.backup }
func (u *chaotic) String() string {
	return fmt.Sprintf("%s:%d/%s×%d", u.name, u.conduct, u.mode, u.weight())
}
func (u *chaotic) state() string     { return map[bool]string{true: "up", false: "down"}[u.up()] }
func (u *chaotic) told(e entry) bool { return u.mode == modeMaintenance || e.Status == u.state() }

// chaosPool is all of them, under a config that says when health is ignored.
type chaosPool struct {
	all      []*chaotic
	failOpen string
}

// those returns who has all of these properties.
func (p *chaosPool) those(properties ...func(*chaotic) bool) (some []*chaotic) {
next:
	for _, u := range p.all {
		for _, has := range properties {
			if !has(u) {
				continue next
			}
		}
		some = append(some, u)
	}
	return some
}

// gets returns who gets requests, and whether that is whatever their health.
func (p *chaosPool) gets() (some []*chaotic, failsOpen bool) {
	primaries := p.those((*chaotic).primary, (*chaotic).ready)
	serving := p.those((*chaotic).primary, (*chaotic).serves)
	backups := p.those((*chaotic).isBackup, (*chaotic).serves)
	if percent, err := strconv.Atoi(strings.TrimSuffix(p.failOpen, "%")); err == nil && len(backups) == 0 && 100*len(serving) < percent*len(primaries) {
		return primaries, true
	}
	for _, tier := range [][]*chaotic{
		serving, backups,
		p.those((*chaotic).primary, (*chaotic).drained), p.those((*chaotic).isBackup, (*chaotic).drained),
	} {
		if len(tier) > 0 {
			return tier, false
		}
	}
	if p.failOpen == "off" {
		return nil, false
	}
	if len(primaries) > 0 {
		return primaries, true
	}
	readyBackups := p.those((*chaotic).isBackup, (*chaotic).ready)
	return readyBackups, len(readyBackups) > 0
}

// sites is a config of the pool. Behind /retried, requests are tried elsewhere.
func (p *chaosPool) sites(version int) string {
	var addrs, weights, backups []string
	for _, u := range p.all {
		addrs = append(addrs, u.addr)
		weights = append(weights, fmt.Sprintf("weight %s %d", u.addr, u.own))
		if u.backup {
			backups = append(backups, u.addr)
		}
	}
	proxy := fmt.Sprintf(`reverse_proxy %s {
			lb_policy alive {
				name chaos
				check http /healthz {
					interval 100ms
					fast_interval 50ms
					timeout 1s
				}
				%s
				backup %s
				fail_open %s
			}
			transport http {
				response_header_timeout 2s
				keepalive off
			}`, strings.Join(addrs, " "), strings.Join(weights, "\n\t\t\t\t"), strings.Join(backups, " "), p.failOpen)
	return fmt.Sprintf(`
http:// {
	header Version %d
	handle /retried {
		%s
			lb_retries 8
		}
	}
	handle {
		%s
		}
	}
}`, version, proxy, proxy)
}

// After each of many random faults, changes by operators and reloads, what is shown of
// every upstream and who gets requests, how many, is as the rules say. While there is
// somebody who serves, no request fails meanwhile, if others are tried.
func TestCaddyChaos(t *testing.T) {
	if *chaosSeed == 0 {
		*chaosSeed = rand.Uint64()
	}
	t.Logf("go test -run TestCaddyChaos -chaos %d -seed %d", *chaosSteps, *chaosSeed)
	chance := rand.New(rand.NewPCG(*chaosSeed, 0))
	p := &chaosPool{failOpen: "none_up"}
	for i, b := range startBackends(t, "a", "b", "c", "d", "e") {
		p.all = append(p.all, &chaotic{backend: b, mode: modeReady, own: []int{1, 2, 3, 1, 2}[i], set: -1, backup: i > 2})
	}
	version := 0
	c := startOperated(t, "", p.sites(version))
	client := c.plain()
	steps := []string{"start"}
	settled := func() (wrong string) {
		for _, u := range p.all {
			if e := c.one(u.addr); !u.told(e) {
				return fmt.Sprintf("%s is shown as %s", u, e.Status)
			}
		}
		return ""
	}
	for range *chaosSteps {
		serving := len(p.those((*chaotic).serves)) > 0
		var clients *traffic
		if serving {
			clients = startTraffic(t, 4, func() answer { return askAgainIfReset(client, c.url()+"/retried") })
		}
		u := p.all[chance.IntN(len(p.all))]
		was := *u
		what := ""
		switch chance.IntN(8) {
		case 0, 1, 2:
			u.conduct = []conduct{well, well, well, sick, sick, sick, sick, refusing, refusing, resetting, resetting, hanging}[chance.IntN(12)]
			what = fmt.Sprintf("%s behaves like %d", u.name, u.conduct)
		case 3, 4:
			u.mode = []mode{modeReady, modeReady, modeDrain, modeMaintenance}[chance.IntN(4)]
			what = fmt.Sprintf("%s: %s", u.name, u.mode)
		case 5:
			u.set = chance.IntN(4) - 1
			what = fmt.Sprintf("%s: weight %d", u.name, u.set)
		case 6:
			p.failOpen = []string{"none_up", "off", "50%", "100%"}[chance.IntN(4)]
			what = "fail_open " + p.failOpen
		case 7:
			what = "reload"
		}
		// requests fail if the change takes away the last one who serves
		fair := serving && len(p.those((*chaotic).serves)) > 0
		switch {
		case u.conduct != was.conduct:
			u.backend.set(u.conduct)
		case u.mode != was.mode:
			c.patch(u.addr, fmt.Sprintf(`{"mode": %q}`, u.mode))
		case u.set != was.set && u.set < 0:
			c.patch(u.addr, `{"weight": null}`)
		case u.set != was.set:
			c.patch(u.addr, fmt.Sprintf(`{"weight": %d}`, u.set))
		case strings.HasPrefix(what, "fail_open"), what == "reload":
			version++
			c.load(p.sites(version))
			if wrong := settled(); wrong != "" {
				t.Errorf("right after a reload: %s", wrong)
			}
		}
		steps = append(steps, what)
		wrong := ""
		if !poll(patience, func() bool { wrong = settled(); return wrong == "" }) {
			t.Errorf("it does not settle: %s", wrong)
		}
		if clients != nil {
			clients.stop()
			if err := clients.err(); err != nil && fair {
				t.Errorf("of %d requests meanwhile: %v", clients.answered(), err)
			}
		}
		p.check(t, c)
		if t.Failed() {
			t.Fatalf("after %d steps: %s; now %v, fail_open %s", len(steps)-1, strings.Join(steps, "; "), p.all, p.failOpen)
		}
	}
}

// askAgainIfReset asks again when a reload of Caddy resets the connection.
func askAgainIfReset(client *http.Client, url string) answer {
	got := ask(client, url)
	if got.status == 0 {
		got = ask(client, url)
	}
	return got
}

// check compares what there is with what the rules say.
func (p *chaosPool) check(t *testing.T, c *instance) {
	t.Helper()
	some, failsOpen := p.gets()
	gets := make(map[*chaotic]bool)
	all := 0
	for _, u := range some {
		gets[u] = true
		all += u.weight()
	}
	const cycles = 3
	want := make(map[string]int)
	slow := false
	for _, u := range some {
		switch {
		case u.answers():
			want[u.name] += cycles * u.weight()
		default:
			want["error"] += cycles * u.weight()
			slow = slow || u.conduct == hanging
		}
	}
	if len(some) == 0 {
		want["error"], all = cycles, 1
	}
	states := map[string]float64{"up": 0, "down": 0, "draining": 0, "maintenance": 0, "unknown": 0}
	for _, u := range p.all {
		e := c.one(u.addr)
		if e.Serving != u.serves() || e.Mode != u.mode || e.Weight != u.weight() || e.Backup != u.backup || e.FailOpen != failsOpen || e.Why == "" {
			t.Errorf("%s is shown as %+v, fail-open is %v", u, e, failsOpen)
		}
		if (e.EffectiveWeight > 0) != gets[u] || gets[u] && e.EffectiveWeight != float64(u.weight()) {
			t.Errorf("%s has the weight %g at this moment, and gets requests: %v", u, e.EffectiveWeight, gets[u])
		}
		switch u.mode {
		case modeMaintenance:
			states["maintenance"]++
		case modeDrain:
			states["draining"]++
		default:
			states[u.state()]++
		}
	}
	wanted := map[string]float64{`pool_fail_open{pool="chaos"}`: map[bool]float64{true: 1}[failsOpen]}
	for state, n := range states {
		wanted[fmt.Sprintf("pool_upstreams{pool=\"chaos\",state=%q}", state)] = n
	}
	c.wantMetrics("after that", wanted)
	quiet := make(map[*chaotic]int)
	for _, u := range p.those(func(u *chaotic) bool { return u.mode == modeMaintenance }) {
		_, quiet[u] = u.seen()
	}
	if len(quiet) > 0 {
		time.Sleep(250 * time.Millisecond) // for two probes, at least
	}
	if !slow { // each would take until the timeout
		shares(t, "after that", tally(c.plain(), c.url(), cycles*all), want)
	}
	for u, before := range quiet {
		// one may have been under way
		if _, now := u.seen(); now > before+1 {
			t.Errorf("%s is probed in maintenance: %d times", u, now-before)
		}
	}
}
