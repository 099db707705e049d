// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

var (
	soakFor = flag.Duration("soak", 10*time.Minute, "how long to soak")
	seed    = flag.Uint64("seed", 0, "of what happens while soaking; 0 for another one each time")
	race    = flag.Bool("race-caddy", false, "build Caddy with the race detector")
)

const (
	// soaked is the site. Its first line makes each config differ, because Caddy does not
	// load a config that equals the one before. What requests say of upstreams counts, and
	// requests are retried, both as by default.
	soaked = `header Config %d
	reverse_proxy %s {
		lb_policy alive {
			name shop
			check http /healthz {
				interval %dms
				fast_interval 50ms
				timeout 1s
			}
		}
		lb_retry_match {
			method GET
		}
		lb_retry_match {
			method GET
			expression ` + "`{rp.status_code} == 503`" + `
		}
		%s
		transport http {
			dial_timeout 1s
			response_header_timeout 3s
			keepalive 1s
		}
	}`
	// toNotice is how long it may take until an upstream that hangs is known to be down:
	// an interval with its jitter, and three timeouts. For one that is back it is less.
	toNotice = 111*time.Millisecond + 3*time.Second
	// busy is how much longer it may take on a busy machine.
	busy = 3 * time.Second
	// afterReload is how long after a reload connections may still be reset.
	afterReload = 500 * time.Millisecond
	// sameCheck is the number of reloads after which the check changes.
	sameCheck = 5
	// few is how many more goroutines and files there may be at the end than before: less
	// than one for each fourth reload in between.
	few = 8
)

// soak is Caddy with upstreams that fail, are deployed, and change.
type soak struct {
	*testing.T
	caddy   *instance
	load    *load
	workers []*worker // the first one is always well and ready
	began   time.Time
	rest    sync.RWMutex // held for reading while an upstream is changed
	mu      sync.Mutex
	done    map[string]int // how often each of them happened
	checked time.Time      // when the check changed last; times count from there
	slowest time.Duration  // to notice a fault
}

// askedFor reports whether the soak is requested, by its flag or by its name.
func askedFor() (asked bool) {
	flag.Visit(func(f *flag.Flag) {
		asked = asked || f.Name == "soak" || f.Name == "test.run" && strings.Contains(f.Value.String(), "Soak")
	})
	return asked
}

// Upstreams are killed, stopped, sick, reset connections, are drained and replaced, and
// change their weight, and configs are loaded, all at random times. One upstream is
// well and ready all the time. So no request fails that can be retried elsewhere. Other
// requests fail only if they were in flight to an upstream when it failed, or were sent
// to it before Caddy could know. Each fault is noticed in time. At the end Caddy has as
// many goroutines and files, and as much memory, as after the first quarter.
func TestSoak(t *testing.T) {
	if !askedFor() {
		skip(t, "it was not asked for: -run TestSoak, for 10 minutes, or -soak 1h")
	}
	if deadline, ok := t.Deadline(); ok && time.Until(deadline) < *soakFor+2*time.Minute {
		t.Fatalf("to soak for %s takes -timeout %s or more; a shorter time is -soak 40s", *soakFor, *soakFor+5*time.Minute)
	}
	if *seed == 0 {
		*seed = rand.Uint64()
	}
	t.Logf("go test -run TestSoak -soak %s -seed %d", *soakFor, *seed)
	s := &soak{T: t, done: make(map[string]int)}
	for range 3 { // so a request with two retries can try each of them
		s.workers = append(s.workers, startWorker(t))
	}
	s.caddy = startCaddy(t, t.TempDir(), "metrics\n\tgrace_period 5s", s.site(0))
	for _, w := range s.workers {
		s.mustBe(w, "ready up")
	}
	var clients [][]kind
	for range 8 {
		clients = append(clients, quick, quick, slow)
		if *race {
			// no websockets: in Caddy 2.11.9 a websocket that outlives a reload is a data race
			// between the end of the config, which sets a timer, and requests to it
			clients[len(clients)-1] = slow[:1]
		}
	}
	s.load = startLoad(t.Context(), "http://"+s.caddy.site, nil, clients)
	t.Cleanup(s.load.end)

	s.began = time.Now()
	var lives sync.WaitGroup
	for i, w := range s.workers[1:] {
		lives.Go(func() { s.live(w, rand.New(rand.NewPCG(*seed, uint64(i)))) })
	}
	lives.Go(func() { s.reloads(rand.New(rand.NewPCG(*seed, 100))) })
	for time.Since(s.began) < *soakFor/4 && !t.Failed() {
		time.Sleep(50 * time.Millisecond)
	}
	early, before := s.usage()
	lives.Wait()
	late, after := s.usage()

	// all upstreams are as they were at the start
	for _, w := range s.workers {
		s.mustBe(w, "ready up")
	}
	s.load.end()
	if n := s.flips(s.workers[0]); n != 0 {
		t.Errorf("the one that was always well went down %d times", n)
	}
	if n := s.ejections(s.workers[0]); n != 0 {
		t.Errorf("the one that was always well was ejected %d times", n)
	}
	// but those that requests have ejected come back after some time only
	ejected := 0
	for _, w := range s.workers {
		if s.entry(w).EjectedUntil != nil {
			ejected++
		}
	}
	if got := s.caddy.answers(20); len(got) < len(s.workers)-ejected {
		t.Errorf("at the end, these answer: %v, and %d are ejected", got, ejected)
	}
	l := s.load
	t.Logf("%s: %v asked, %v excused, %d reset by reloads; happened: %v; noticed in %s at most; %+v after %d reloads, %+v after %d; reset by a reload %s after its end at most",
		time.Since(s.began).Round(time.Second), l.asked, l.excused, l.resets, s.done, s.slowest.Round(time.Millisecond), early, before, late, after, l.reset.Round(time.Millisecond))
	if n := len(l.failed.all); n > 0 {
		t.Errorf("%d requests failed: %v", n, errors.Join(l.failed.all[:min(5, n)]...))
	}
	if limit := after * len(l.all) / 2; l.resets > limit {
		t.Errorf("%d requests were reset in %d reloads, want at most %d", l.resets, after, limit)
	}
	s.compare(early, late, min(few, max(1, (after-before)/4-1)))
	s.caddy.stop()
	for _, bad := range []string{"DATA RACE", "panic"} {
		if log := s.caddy.log(); strings.Contains(log, bad) {
			t.Errorf("Caddy's log: %.3000s", log[strings.Index(log, bad):])
		}
	}
}

// compare fails the test if Caddy uses more at the end than before.
func (s *soak) compare(early, late usage, more int) {
	if late.goroutines > early.goroutines+more {
		s.Errorf("goroutines grow: %d, later %d, want at most %d more: %s", early.goroutines, late.goroutines, more, s.caddy.profile("goroutine?debug=1"))
	}
	if late.files > early.files+more {
		s.Errorf("files grow: %d, later %d, want at most %d more", early.files, late.files, more)
	}
	if late.heap > early.heap*11/10+2<<10 {
		s.Errorf("the heap grows: %d KiB, later %d", early.heap, late.heap)
	}
	// the memory of the race detector grows with all memory that was ever in use
	if !*race && late.resident > early.resident*5/4+8<<10 {
		s.Errorf("memory grows: %d KiB, later %d", early.resident, late.resident)
	}
}

// over reports whether no more changes are to be made.
func (s *soak) over() bool { return time.Since(s.began) > *soakFor || s.Failed() }

// usage pauses everything, and returns what Caddy uses then, and after how many
// reloads.
func (s *soak) usage() (u usage, reloads int) {
	s.rest.Lock()
	defer s.rest.Unlock()
	s.load.rest.Lock()
	defer s.load.rest.Unlock()
	s.load.hangUp()
	return s.caddy.usage(), s.done["reload"]
}

// happens counts an event.
func (s *soak) happens(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.done[what]++
}

// live makes one change after the other to an upstream, and undoes each.
func (s *soak) live(w *worker, chance *rand.Rand) {
	for !s.over() {
		time.Sleep(time.Duration(chance.IntN(500)) * time.Millisecond)
		s.rest.RLock()
		var err error
		switch what := []string{"kill", "stop", "sick", "reset", "deploy", "weight", "maintenance"}[chance.IntN(7)]; what {
		case "deploy":
			err = s.deploy(w)
		case "weight":
			err = s.patch(w, fmt.Sprintf(`{"weight": %d}`, chance.IntN(5)))
			time.Sleep(time.Duration(chance.IntN(500)) * time.Millisecond)
			err = errors.Join(err, s.patch(w, `{"weight": null}`))
			s.happens(what)
		case "maintenance":
			err = s.patch(w, `{"mode": "maintenance"}`)
			time.Sleep(time.Duration(chance.IntN(500)) * time.Millisecond)
			err = errors.Join(err, s.patch(w, `{"mode": "ready"}`), s.becomes(w, "ready up"))
			s.happens(what)
		default:
			mode := []string{"ready", "ready", "drain"}[chance.IntN(3)]
			err = errors.Join(s.patch(w, fmt.Sprintf(`{"mode": %q}`, mode)), s.fault(w, what, mode, chance), s.patch(w, `{"mode": "ready"}`))
			s.happens(what)
		}
		s.rest.RUnlock()
		if err != nil {
			s.Error(err)
			return
		}
	}
}

// fault makes an upstream fail for a while. Until Caddy knows, failed requests that
// cannot be retried are excused.
func (s *soak) fault(w *worker, what, mode string, chance *rand.Rand) error {
	known := s.load.faults.begin(w.addr)
	defer known(0)
	began := time.Now()
	if err := w.suffer(what); err != nil {
		return err
	}
	if err := s.becomes(w, mode+" down"); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	s.mu.Lock()
	s.slowest = max(s.slowest, time.Since(later(began, s.checked)))
	s.mu.Unlock()
	known(100 * time.Millisecond) // for requests that had chosen it before
	time.Sleep(time.Duration(chance.IntN(1000)) * time.Millisecond)
	if err := w.recover(what); err != nil {
		return err
	}
	return s.becomes(w, mode+" up")
}

func (w *worker) suffer(what string) error {
	switch what {
	case "kill":
		w.kill()
		return nil
	case "stop":
		return w.signal(syscall.SIGSTOP)
	case "sick":
		return w.behave(sick)
	default:
		return w.behave(resetting)
	}
}

func (w *worker) recover(what string) error {
	switch what {
	case "kill":
		return w.start()
	case "stop":
		return w.signal(syscall.SIGCONT)
	default:
		return w.behave(well)
	}
}

// deploy replaces an upstream as operators do: it is drained first, so it has nothing
// in flight when it ends, and nothing is excused.
func (s *soak) deploy(w *worker) error {
	if err := s.patch(w, `{"mode": "drain"}`); err != nil {
		return err
	}
	looks := 0 // Caddy counts a request shortly after it is assigned to an upstream
	if !poll(func() bool {
		if looks++; s.entry(w).Requests != 0 {
			looks = 0
		}
		return looks == 2
	}) {
		return fmt.Errorf("%s: drained, it has requests in flight for %s", w.addr, patience)
	}
	w.kill()
	if err := s.becomes(w, "drain down"); err != nil {
		return err
	}
	if err := w.start(); err != nil {
		return err
	}
	if err := s.becomes(w, "drain up"); err != nil {
		return err
	}
	s.happens("deploy")
	return s.patch(w, `{"mode": "ready"}`)
}

// site returns a config. After every sameCheck reloads its check changes.
func (s *soak) site(reloads int) string {
	var addresses []string
	for _, w := range s.workers {
		addresses = append(addresses, w.addr)
	}
	outlive := "stream_close_delay 1m" // websockets outlive a reload
	if *race {
		outlive = ""
	}
	return fmt.Sprintf(soaked, reloads, strings.Join(addresses, " "), 100+reloads/sameCheck%2, outlive)
}

// reloads loads one config after the other.
func (s *soak) reloads(chance *rand.Rand) {
	for n := 1; !s.over(); n++ {
		time.Sleep(time.Duration(500+chance.IntN(1000)) * time.Millisecond)
		s.rest.RLock()
		over := s.load.reloads.begin("caddy")
		err := s.reload(n)
		over(afterReload)
		s.happens("reload")
		if n%sameCheck == 0 {
			s.mu.Lock()
			s.checked = time.Now()
			s.mu.Unlock()
		}
		s.rest.RUnlock()
		if err != nil {
			s.Error(err)
			return
		}
	}
}

// reload loads the config with this number, and returns when it answers.
func (s *soak) reload(n int) error {
	if _, err := s.ask(http.MethodPost, "/load", "text/caddyfile", fmt.Sprintf(s.caddy.text, s.site(n))); err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(s.Context(), http.MethodHead, "http://"+s.caddy.site, nil)
	if err != nil {
		return err
	}
	request.Close = true
	config := ""
	if !poll(func() bool {
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			return false
		}
		response.Body.Close()
		config = response.Header.Get("Config")
		return config == strconv.Itoa(n)
	}) {
		return fmt.Errorf("config %s answers, want %d", config, n)
	}
	return nil
}

// patch changes the mode or weight of an upstream.
func (s *soak) patch(w *worker, change string) error {
	_, err := s.ask(http.MethodPatch, "/alive/upstreams?upstream="+url.QueryEscape(w.addr), "application/json", change)
	return err
}

// ask sends a request to the admin API, over a connection that is not kept. A reload
// replaces the admin server, too, and resets connections then.
func (s *soak) ask(method, path, contentType, body string) (string, error) {
	for {
		began := time.Now()
		text, err := s.askOnce(method, path, contentType, body)
		if !isReset(err) || !s.load.reloads.excuse(anyUpstream, began) {
			return text, err
		}
	}
}

func (s *soak) askOnce(method, path, contentType, body string) (string, error) {
	request, err := http.NewRequestWithContext(s.Context(), method, "http://"+s.caddy.admin+path, strings.NewReader(body))
	if err != nil {
		return "", err
	}
	request.Header.Set("Content-Type", contentType)
	request.Close = true
	response, err := s.caddy.client.Do(request)
	if err != nil {
		return "", unanswered{err}
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %s: status %d: %s", method, path, response.StatusCode, text)
	}
	return string(text), err
}

// listed is a row of the list.
type listed struct {
	Upstream, Mode, Status string
	Requests               int
	EjectedUntil           *time.Time `json:"ejected_until"`
}

// entry returns the row of an upstream.
func (s *soak) entry(w *worker) listed {
	text, err := s.ask(http.MethodGet, "/alive/upstreams?upstream="+url.QueryEscape(w.addr), "", "")
	var entries []listed
	if err == nil {
		err = json.Unmarshal([]byte(text), &entries)
	}
	switch {
	case err != nil:
		s.Errorf("the list: %v", err)
	case len(entries) == 1:
		return entries[0]
	}
	return listed{Mode: "not", Status: "listed", Requests: -1}
}

// becomes waits until an upstream is listed with this mode and status, and returns an
// error if it takes too long.
func (s *soak) becomes(w *worker, want string) error {
	began := time.Now()
	for {
		e := s.entry(w)
		is := e.Mode + " " + e.Status
		if is == want {
			return nil
		}
		s.mu.Lock()
		checked := s.checked
		s.mu.Unlock()
		took := time.Since(later(began, checked))
		if took > toNotice+busy && (took > patience || !s.late(began)) || s.Failed() {
			return fmt.Errorf("%s is %s after %s, want %s", w.addr, is, took.Round(time.Millisecond), want)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// late reports whether Caddy logged since then that it runs late, which it does once a
// minute at most. Timeouts then count for nothing, and the time to notice a fault has
// no bound.
func (s *soak) late(since time.Time) bool {
	for line := range strings.Lines(s.caddy.log()) {
		var said struct {
			TS  float64
			Msg string
		}
		if err := json.Unmarshal([]byte(line), &said); err != nil || !strings.HasPrefix(said.Msg, "this process is late") {
			continue
		}
		if at := time.UnixMilli(int64(1000 * said.TS)); at.After(since.Add(-time.Minute)) {
			return true
		}
	}
	return false
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func (s *soak) mustBe(w *worker, want string) {
	s.Helper()
	if err := s.becomes(w, want); err != nil {
		s.Fatal(err)
	}
}

// flips returns how often an upstream went down, by the metrics.
func (s *soak) flips(w *worker) int {
	s.Helper()
	text, err := s.ask(http.MethodGet, "/metrics", "", "")
	if err != nil {
		s.Fatal(err)
	}
	return downs(s.T, text, w.addr)
}

// ejections returns how often an upstream was ejected, by the metrics.
func (s *soak) ejections(w *worker) (n int) {
	s.Helper()
	text, err := s.ask(http.MethodGet, "/metrics", "", "")
	if err != nil {
		s.Fatal(err)
	}
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "caddy_alive_ejections_total{") && strings.Contains(line, fmt.Sprintf("upstream=%q", w.addr)) {
			n += number(s.T, `} (\d+)`, line)
		}
	}
	return n
}

// downs returns how often an upstream went down, by the text of the metrics.
func downs(t *testing.T, metrics, upstream string) (n int) {
	t.Helper()
	for line := range strings.Lines(metrics) {
		if strings.HasPrefix(line, "caddy_alive_transitions_total{") && strings.Contains(line, fmt.Sprintf("upstream=%q", upstream)) && strings.Contains(line, `to="down"`) {
			n += number(t, `} (\d+)`, line)
		}
	}
	return n
}
