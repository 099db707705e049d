// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/websocket"
)

const (
	// streaming is how long a download and a websocket last.
	streaming = 10 * time.Second
	// chunks is the number of parts of a download.
	chunks = 100
)

// app is an upstream that a deploy replaces.
type app struct {
	name, addr         string
	requests           atomic.Int64 // since it was last started
	downloads, sockets atomic.Int64 // in flight
	server             *http.Server
}

// start starts the app, at the address that it had before.
func (a *app) start(t *testing.T) {
	t.Helper()
	if a.addr == "" {
		a.addr = "127.0.0.1:0"
	}
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", a.addr)
	if err != nil {
		t.Fatal(err)
	}
	a.addr = listener.Addr().String()
	a.requests.Store(0)
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("/download", func(w http.ResponseWriter, _ *http.Request) {
		a.downloads.Add(1)
		defer a.downloads.Add(-1)
		for range chunks {
			fmt.Fprintln(w, a.name)
			w.(http.Flusher).Flush()
			time.Sleep(streaming / chunks)
		}
	})
	mux.Handle("/socket", websocket.Server{Handler: func(conn *websocket.Conn) {
		a.sockets.Add(1)
		defer a.sockets.Add(-1)
		_, _ = io.Copy(conn, conn)
	}})
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		a.requests.Add(1)
		fmt.Fprint(w, a.name)
	})
	a.server = &http.Server{Handler: mux, ReadHeaderTimeout: patience}
	go func() { _ = a.server.Serve(listener) }()
}

// failures collects the failures of requests.
type failures struct {
	mu  sync.Mutex
	all []error
}

func (f *failures) add(what string, err error) {
	if err == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.all = append(f.all, fmt.Errorf("%s: %w", what, err))
}

// get reads an answer to its end.
func get(client *http.Client, url string) (string, error) {
	response, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %d: %s", response.StatusCode, body)
	}
	return string(body), err
}

// talk sends text over a websocket from time to time, and expects it back.
func talk(site string) error {
	conn, err := websocket.Dial("ws://"+site+"/socket", "", "http://"+site)
	if err != nil {
		return err
	}
	defer conn.Close()
	for i := range chunks {
		said, heard := fmt.Sprint("word ", i), ""
		if err := websocket.Message.Send(conn, said); err != nil {
			return err
		}
		if err := websocket.Message.Receive(conn, &heard); err != nil {
			return err
		}
		if heard != said {
			return fmt.Errorf("heard %q, want %q", heard, said)
		}
		time.Sleep(streaming / chunks)
	}
	return nil
}

// startClients runs 16 clients that send requests to the site without a pause, until
// they are stopped.
func (c *instance) startClients(failed *failures) (asked *atomic.Int64, stop func()) {
	asked = new(atomic.Int64)
	ctx, cancel := context.WithCancel(c.t.Context())
	var clients sync.WaitGroup
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 16}, Timeout: patience}
	for range 16 {
		clients.Go(func() {
			for ctx.Err() == nil {
				_, err := get(client, "http://"+c.site+"/")
				failed.add("request", err)
				asked.Add(1)
			}
		})
	}
	stop = func() {
		cancel()
		clients.Wait()
	}
	c.t.Cleanup(stop)
	return asked, stop
}

// A deploy under load: each of three upstreams is drained, replaced once it has nothing
// in flight, and made ready again, while 16 clients send requests without a pause, and
// downloads and websockets are in flight. No request fails, without any retry.
func TestDeploy_UnderLoadFailsNoRequest(t *testing.T) {
	apps := []*app{{name: "a"}, {name: "b"}, {name: "c"}}
	var addresses []string
	for _, a := range apps {
		a.start(t)
		t.Cleanup(func() { a.server.Close() })
		addresses = append(addresses, a.addr)
	}
	c := startCaddy(t, t.TempDir(), "", "reverse_proxy "+strings.Join(addresses, " ")+` {
		lb_policy alive {
			check http /healthz {
				interval 200ms
			}
			retries off
		}
	}`)
	eventually(t, "all are up", func() bool {
		for _, a := range apps {
			if c.modes()[a.addr] != "ready up" {
				return false
			}
		}
		return true
	})

	var failed failures
	asked, stop := c.startClients(&failed)
	var streams sync.WaitGroup
	client := &http.Client{Timeout: patience}
	for _, a := range apps {
		// Caddy chooses the upstream of a stream, so wait until this one has both kinds
		eventually(t, "it is busy with streams", func() bool {
			if a.downloads.Load() > 0 && a.sockets.Load() > 0 {
				return true
			}
			streams.Go(func() {
				body, err := get(client, "http://"+c.site+"/download")
				if n := strings.Count(body, "\n"); err == nil && n != chunks {
					err = fmt.Errorf("%d of %d lines", n, chunks)
				}
				failed.add("download", err)
			})
			streams.Go(func() { failed.add("websocket", talk(c.site)) })
			time.Sleep(100 * time.Millisecond)
			return false
		})
		out, errs, status := c.runFor(90*time.Second, "drain", a.addr, "--wait", "60s", "--address", c.admin)
		if status != 0 {
			t.Fatalf("drain: status %d, %s%s", status, out, errs)
		}
		if a.downloads.Load() > 0 || a.sockets.Load() > 0 {
			t.Errorf("%s: drained with %d downloads and %d websockets in flight", a.name, a.downloads.Load(), a.sockets.Load())
		}
		before := a.requests.Load()
		from := asked.Load()
		eventually(t, "clients go on", func() bool { return asked.Load() > from+500 })
		if n := a.requests.Load() - before; n > 0 {
			t.Errorf("%s: got %d requests after it was drained", a.name, n)
		}
		a.server.Close()
		eventually(t, "it is gone", func() bool { return c.modes()[a.addr] == "drain down" })
		a.start(t)
		eventually(t, "it is back", func() bool { return c.modes()[a.addr] == "drain up" })
		if _, errs, status := c.run("ready", a.addr, "--address", c.admin); status != 0 {
			t.Fatalf("ready: status %d, %s", status, errs)
		}
		eventually(t, "it serves again", func() bool { return a.requests.Load() > 100 })
	}
	streams.Wait()
	stop()
	if len(failed.all) > 0 {
		t.Errorf("of %d requests and the streams, %d failed: %v", asked.Load(), len(failed.all), errors.Join(failed.all[:min(5, len(failed.all))]...))
	}
	t.Logf("%d requests", asked.Load())
}
