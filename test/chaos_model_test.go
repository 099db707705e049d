// SPDX-License-Identifier: Apache-2.0

package test

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/caddy-alive/caddy-alive/internal/testkit"
)

// chaotic is an upstream as the test knows it. Its methods follow the documented rules,
// independent of the code.
type chaotic struct {
	*testkit.Backend
	conduct testkit.Conduct
	mode    string
	own     int // weight by the config
	set     int // weight set at run time, below 0 for none
	group   int
	rebind  bool // its clients move while it drains
	check   string
	core    bool         // Caddy has checks of its own
	shunned *atomic.Bool // it does not pass them
	// ejected is what the list says: whether requests eject it depends on their order.
	ejected bool
	load    *chaosLoad
}

func (u *chaotic) weight() int {
	if u.set >= 0 {
		return u.set
	}
	return u.own
}

// up reports whether its check passes. A sick upstream fails the checks of /healthz only, and
// a shallow one passes only these.
func (u *chaotic) up() bool {
	switch u.conduct {
	case testkit.Well:
		return true
	case testkit.Sick:
		return u.check == "http /"
	case testkit.Shallow:
		return u.check != "http /"
	default:
		return false
	}
}
func (u *chaotic) ready() bool { return u.mode == "ready" && u.weight() > 0 }

// serves reports whether it gets requests like others, and isAlive also if it is ejected.
func (u *chaotic) serves() bool  { return u.isAlive() && !u.ejected }
func (u *chaotic) isAlive() bool { return u.ready() && u.up() && u.healthy() }

// healthy reports whether Caddy itself considers it healthy.
func (u *chaotic) healthy() bool {
	return !u.core || (u.conduct == testkit.Well || u.conduct == testkit.Shallow) && !u.shunned.Load()
}
func (u *chaotic) isEjected() bool { return u.isAlive() && u.ejected }

// isUnsteady reports whether the shares of requests change while there are any: an upstream
// that passes its check and fails requests is ejected at some time, and then tried.
func (u *chaotic) isUnsteady() bool { return u.conduct == testkit.Shallow && u.up() || u.ejected }

func (u *chaotic) answers() bool  { return u.conduct == testkit.Well || u.conduct == testkit.Sick }
func (u *chaotic) primary() bool  { return u.group == 0 }
func (u *chaotic) isBackup() bool { return u.group > 0 }

// drains reports whether it gets requests while none serves. It is drained also if it is ejected.
func (u *chaotic) drains() bool { return u.drained() && !u.ejected }

func (u *chaotic) drained() bool {
	return u.mode == "drain" && u.weight() > 0 && u.up() && u.healthy()
}

// isOut reports whether it gets requests while none serves or drains.
func (u *chaotic) isOut() bool { return u.ejected && (u.isAlive() || u.drained()) }

// keeps reports whether clients that are bound to it stay there.
func (u *chaotic) keeps() bool {
	return u.mode != "maintenance" && !u.rebind && u.weight() > 0 && u.up() && u.healthy() && !u.ejected
}

func (u *chaotic) String() string {
	return fmt.Sprintf("%s:%d/%s×%d/%v", u.Name, u.conduct, u.mode, u.weight(), u.healthy())
}

// state is what is known of it, nothing in maintenance.
func (u *chaotic) state() string {
	switch {
	case u.mode == "maintenance":
		return "unknown"
	case u.up():
		return "up"
	default:
		return "down"
	}
}

const (
	chaosInterval = 100 * time.Millisecond
	chaosFast     = 50 * time.Millisecond
	chaosTimeout  = time.Second
	chaosRamp     = 200 * time.Millisecond
	chaosEjected  = time.Second // at most, at a time
	chaosGroups   = 3
	chaosSecret   = "chaos"
	spillHeld     = 5 * time.Second // how long enough must serve until a group leaves

	coreCheck = "/healthz/core" // of Caddy itself
	// mayCheckItself: Caddy's health checks begin before its events app starts, and emit
	// events; where there are handlers of events, the race detector finds that out.
	mayCheckItself = !testkit.RaceDetector
)

// toNotice is how long the check may take to notice a change: an interval with its jitter,
// and three failed probes, each by its timeout if it hangs.
func (u *chaotic) toNotice() time.Duration {
	probe := chaosFast * 11 / 10
	if u.conduct == testkit.Hanging {
		probe = max(probe, chaosTimeout)
	}
	return chaosInterval*11/10 + 3*probe
}

// chaosPool is the pool of all of them, with its config.
type chaosPool struct {
	all      []*chaotic
	failOpen string
	ramps    bool
	sticky   bool
	spill    int  // a percentage, 0 if it is off
	limit    int  // of each upstream, 0 for none
	queues   bool // at the limit
	version  int

	// joined is how many groups have joined the primaries, because too little serves. While
	// upstreams are ejected and return it may change in between, and is unsure.
	joined int
	unsure bool
}

// spills returns the percentage of spill. Where the weight changes without a sign, because of
// Caddy's own checks or a slow start, the config has none.
func (p *chaosPool) spills() int {
	if p.all[0].core || p.ramps {
		return 0
	}
	return p.spill
}

// serving returns the weight that serves in the first groups, up to one, and the base.
func (p *chaosPool) serving(group int) (serving, base int) {
	for first := 0; base == 0 && first < chaosGroups; first++ {
		for _, u := range p.all {
			if u.group == first {
				base += u.weight()
			}
		}
	}
	for _, u := range p.all {
		if u.group <= group && u.ready() && u.up() && !u.ejected {
			serving += u.weight()
		}
	}
	return serving, base
}

// joining returns how many groups have to join the primaries, and how many may stay: those
// after them leave after a while.
func (p *chaosPool) joining() (least, most int) {
	if p.spills() == 0 {
		return 0, 0
	}
	for least < chaosGroups-1 {
		if serving, base := p.serving(least); 100*serving >= p.spills()*base {
			break
		}
		least++
	}
	for most < chaosGroups-1 {
		if serving, base := p.serving(most); 100*serving >= min(100, p.spills()+10)*base {
			break
		}
		most++
	}
	return least, most
}

// those returns the upstreams with all of these properties.
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

// byGroup returns the upstreams with a property by their groups. The first groups are one, as
// many as have joined the primaries.
func (p *chaosPool) byGroup(joined int, has func(*chaotic) bool) (tiers [][]*chaotic) {
	for group := joined; group < chaosGroups; group++ {
		tiers = append(tiers, p.those(has, func(u *chaotic) bool {
			return u.group == group || group == joined && u.group < group
		}))
	}
	return tiers
}

// tooFew reports whether so few primaries serve that their health is ignored.
func (p *chaosPool) tooFew(serving, all int) bool {
	if text, ok := strings.CutSuffix(p.failOpen, "%"); ok {
		percent, _ := strconv.Atoi(text)
		return 100*serving < percent*all
	}
	number, err := strconv.Atoi(p.failOpen)
	return err == nil && serving < min(number, all)
}

// gets returns the upstreams that get requests, and whether their health is ignored.
func (p *chaosPool) gets() (some []*chaotic, failsOpen bool) { return p.getsWith(p.joined) }

// getsWith is gets while so many groups have joined the primaries.
func (p *chaosPool) getsWith(joined int) (some []*chaotic, failsOpen bool) {
	primaries := p.those((*chaotic).primary, (*chaotic).ready)
	alive := p.those((*chaotic).primary, (*chaotic).isAlive) // ejected ones count as serving
	backups := p.those((*chaotic).isBackup, (*chaotic).isAlive)
	if len(backups) == 0 && p.tooFew(len(alive), len(primaries)) {
		return primaries, true
	}
	for _, tier := range slices.Concat(p.byGroup(joined, (*chaotic).serves), p.byGroup(0, (*chaotic).drains), p.byGroup(0, (*chaotic).isOut)) {
		if len(tier) > 0 {
			return tier, false
		}
	}
	if p.failOpen == "off" {
		return nil, false
	}
	for _, tier := range p.byGroup(0, (*chaotic).ready) {
		if len(tier) > 0 {
			return tier, true
		}
	}
	return nil, false
}

// mayTry returns the upstreams that a request with retries may try, each once: all that
// serve or drain, and unless fail_open is off, all others that are ready.
func (p *chaosPool) mayTry() (some []*chaotic) {
	for _, u := range p.all {
		if u.isAlive() || u.drained() || u.ready() && p.failOpen != "off" {
			some = append(some, u)
		}
	}
	return some
}

// reliable returns the names of the upstreams that serve and answer. An ejected one is tried
// after all others.
func (p *chaosPool) reliable() map[string]bool {
	names := make(map[string]bool)
	for _, u := range p.those((*chaotic).isAlive, (*chaotic).answers) {
		names[u.Name] = true
	}
	return names
}
