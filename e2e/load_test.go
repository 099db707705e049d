// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/websocket"
)

// unanswered is what a client gets when its connection ends before any answer.
type unanswered struct{ error }

func (u unanswered) Unwrap() error { return u.error }

// somebody answers where it is not known who.
const somebody = "somebody"

// excuse says when something that happens to an upstream excuses that a request fails.
type excuse int

const (
	never  excuse = iota // Caddy asks another one, and the answer comes at once
	begun                // Caddy asks another one, unless the answer began
	always               // Caddy does not ask another one
)

// kind is one kind of request. Asking returns who began to answer, "" for nobody.
type kind struct {
	name    string
	excused excuse
	ask     func(ctx context.Context, client *http.Client, site string) (by string, err error)
}

// quick and slow are the kinds of a mixed load.
var (
	quick = []kind{
		{"get", never, askSmall},
		{"large", begun, askLarge},
		{"get", never, askSmall},
		{"post", always, askEcho},
	}
	slow = []kind{
		{"download", begun, askDownload},
		{"socket", begun, askSocket},
	}
)

// exchange sends a request and reads the answer.
func exchange(ctx context.Context, client *http.Client, method, url string, body []byte) (answer []byte, by string, err error) {
	request, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return nil, "", err
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, "", unanswered{err}
	}
	defer response.Body.Close()
	by = response.Header.Get("Worker")
	if response.StatusCode != http.StatusOK {
		return nil, "", fmt.Errorf("status %d from %q", response.StatusCode, by)
	}
	answer, err = io.ReadAll(response.Body)
	return answer, by, err
}

func askSmall(ctx context.Context, client *http.Client, site string) (string, error) {
	answer, by, err := exchange(ctx, client, http.MethodGet, site+"/", nil)
	if err == nil && string(answer) != by {
		err = fmt.Errorf("%q from %s", answer, by)
	}
	return by, err
}

func askLarge(ctx context.Context, client *http.Client, site string) (string, error) {
	answer, by, err := exchange(ctx, client, http.MethodGet, site+"/large", nil)
	if err == nil && len(answer) != largeSize {
		err = fmt.Errorf("%d bytes", len(answer))
	}
	return by, err
}

func askEcho(ctx context.Context, client *http.Client, site string) (string, error) {
	said := bytes.Repeat([]byte("what is said "), 2000)
	answer, by, err := exchange(ctx, client, http.MethodPost, site+"/echo", said)
	if err == nil && !bytes.Equal(answer, said) {
		err = fmt.Errorf("%d bytes of %d", len(answer), len(said))
	}
	return by, err
}

func askDownload(ctx context.Context, client *http.Client, site string) (string, error) {
	answer, by, err := exchange(ctx, client, http.MethodGet, site+"/download", nil)
	if n := bytes.Count(answer, []byte(by+"\n")); err == nil && n != parts {
		err = fmt.Errorf("%d of %d lines", n, parts)
	}
	return by, err
}

// askSocket talks over a websocket, whose first word is who answers.
func askSocket(ctx context.Context, _ *http.Client, site string) (by string, err error) {
	config, err := websocket.NewConfig(strings.Replace(site, "http://", "ws://", 1)+"/socket", site)
	if err != nil {
		return "", err
	}
	conn, err := config.DialContext(ctx)
	if err != nil {
		if failed, ok := errors.AsType[*websocket.DialError](err); ok {
			err = failed.Err // which it does not wrap
		}
		return "", unanswered{err}
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if err := websocket.Message.Receive(conn, &by); err != nil {
		return somebody, err
	}
	for i := range parts {
		said, heard := fmt.Sprint("word ", i), ""
		if err := websocket.Message.Send(conn, said); err != nil {
			return by, err
		}
		if err := websocket.Message.Receive(conn, &heard); err != nil {
			return by, err
		}
		if heard != said {
			return by, fmt.Errorf("heard %q, want %q", heard, said)
		}
		time.Sleep(partTime)
	}
	return by, nil
}

// isReset reports whether a connection ended before any answer, rather than that
// something took too long.
func isReset(err error) bool {
	var none unanswered
	var timeout net.Error
	if !errors.As(err, &none) || errors.As(err, &timeout) && timeout.Timeout() {
		return false
	}
	for _, is := range []error{syscall.ECONNRESET, syscall.EPIPE, io.EOF, io.ErrUnexpectedEOF, net.ErrClosed} {
		if errors.Is(err, is) {
			return true
		}
	}
	return strings.Contains(err.Error(), "server closed idle connection")
}

// troubles are the times in which something may go wrong, and at whom.
type troubles struct {
	mu   sync.Mutex
	last []*trouble
}

type trouble struct {
	who   string
	ended time.Time // zero while it lasts
}

// begin notes that somebody is in trouble from now on. What is returned ends that,
// after some time more.
func (all *troubles) begin(who string) (end func(after time.Duration)) {
	all.mu.Lock()
	defer all.mu.Unlock()
	one := &trouble{who: who}
	all.last = append(all.last, one)
	if len(all.last) > 100 {
		all.last = all.last[1:]
	}
	return func(after time.Duration) {
		all.mu.Lock()
		defer all.mu.Unlock()
		one.ended = time.Now().Add(after)
	}
}

// excuse reports whether who, or somebody, was in trouble at any time since.
func (all *troubles) excuse(who string, since time.Time) bool {
	all.mu.Lock()
	defer all.mu.Unlock()
	for _, one := range all.last {
		if (who == somebody || who == one.who) && (one.ended.IsZero() || one.ended.After(since)) {
			return true
		}
	}
	return false
}

// over returns how long the last one is over.
func (all *troubles) over() time.Duration {
	all.mu.Lock()
	defer all.mu.Unlock()
	if last := all.last[len(all.last)-1]; !last.ended.IsZero() {
		return time.Since(last.ended) + afterReload
	}
	return 0
}

// load is clients that ask without an end.
type load struct {
	site           string
	all            []*http.Client
	faults         troubles // of upstreams, until Caddy knows of it
	reloads        troubles // of Caddy, which resets connections then
	rest           sync.RWMutex
	stop           context.CancelFunc
	asking         sync.WaitGroup
	failed         failures
	mu             sync.Mutex
	asked, excused map[string]int // by kind
	resets         int
	reset          time.Duration // the longest after the end of a reload
}

// dialer makes connections.
type dialer func(ctx context.Context, network, address string) (net.Conn, error)

// startLoad has clients ask a site, each for kinds of its own, over a connection of its
// own. They connect by a dialer, but for websockets; nil is the usual one.
func startLoad(ctx context.Context, site string, dial dialer, clients [][]kind) *load {
	l := &load{site: site, asked: make(map[string]int), excused: make(map[string]int)}
	ctx, l.stop = context.WithCancel(ctx)
	for i, kinds := range clients {
		client := &http.Client{Timeout: patience, Transport: &http.Transport{DialContext: dial}}
		l.all = append(l.all, client)
		l.asking.Go(func() {
			for n := i; ctx.Err() == nil; n++ {
				l.rest.RLock()
				l.ask(client, kinds[n%len(kinds)])
				l.rest.RUnlock()
				time.Sleep(2 * time.Millisecond)
			}
		})
	}
	return l
}

// count returns how many of a kind were asked for.
func (l *load) count(kind string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.asked[kind]
}

// end has all clients leave, once what they asked for is answered.
func (l *load) end() {
	l.stop()
	l.asking.Wait()
	l.hangUp()
}

// hangUp closes the connections of all clients, of which none may ask anything.
func (l *load) hangUp() {
	for _, client := range l.all {
		client.CloseIdleConnections()
	}
}

// ask asks once, and judges what comes of it. On Linux, a reload of Caddy has a new
// socket listen and closes the old one, which resets the connections that it has not
// accepted yet, whatever the policy: 40 of 209,088 requests in 1,492 reloads with
// round_robin. So does closing a kept connection in the moment in which it is used.
// Then, and only then, a client asks again.
func (l *load) ask(client *http.Client, k kind) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	by, err := k.ask(ctx, client, l.site)
	l.mu.Lock()
	l.asked[k.name]++
	l.mu.Unlock()
	if isReset(err) && l.reloads.excuse(somebody, began) {
		l.mu.Lock()
		l.resets++
		l.reset = max(l.reset, l.reloads.over())
		l.mu.Unlock()
		by, err = k.ask(ctx, client, l.site)
	}
	if k.excused == always {
		by = somebody
	}
	switch {
	case err == nil:
	case k.excused != never && l.faults.excuse(by, began):
		l.mu.Lock()
		l.excused[k.name]++
		l.mu.Unlock()
	default:
		l.failed.add(fmt.Sprintf("%s, answered by %q, after %s", k.name, by, time.Since(began).Round(time.Millisecond)), err)
	}
}
