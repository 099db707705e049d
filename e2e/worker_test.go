// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/websocket"
)

const (
	// workerAddress makes the test binary a worker at that address.
	workerAddress = "E2E_WORKER"
	// parts is the number of parts of a download. The pause between them is partTime.
	parts    = 20
	partTime = 50 * time.Millisecond
	// largeSize is the size of a large answer, in bytes.
	largeSize = 256 << 10
)

// worker is an upstream in a process of its own, so that it can be killed and stopped.
type worker struct {
	t       *testing.T
	addr    string
	command *exec.Cmd
	life    io.Closer // the process ends when it is closed, and so with the test
}

// startWorker runs a worker until the test ends.
func startWorker(t *testing.T) *worker {
	t.Helper()
	w := &worker{t: t, addr: fmt.Sprintf("127.0.0.1:%d", freePort(t))}
	if err := w.start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.kill)
	return w
}

// start starts the process, without waiting until it serves.
func (w *worker) start() (err error) {
	w.command = exec.Command(os.Args[0])
	w.command.Env = append(os.Environ(), workerAddress+"="+w.addr)
	w.command.Stderr = os.Stderr
	if w.life, err = w.command.StdinPipe(); err != nil {
		return err
	}
	return w.command.Start()
}

// kill ends the process at once, as kill -9 does.
func (w *worker) kill() {
	_ = w.command.Process.Kill()
	_ = w.command.Wait()
	w.life.Close()
}

// signal sends a signal, which stops or continues the process.
func (w *worker) signal(signal syscall.Signal) error { return w.command.Process.Signal(signal) }

// conduct is how a worker behaves.
type conduct int32

const (
	well      conduct = iota
	sick              // answers everything with 503
	resetting         // resets every connection that sends a request
)

// behave changes the conduct.
func (w *worker) behave(like conduct) error {
	response, err := http.Post(fmt.Sprintf("http://%s/conduct/%d", w.addr, like), "", nil)
	if err != nil {
		return err
	}
	response.Body.Close()
	if response.StatusCode != http.StatusNoContent {
		return fmt.Errorf("%s: status %d", w.addr, response.StatusCode)
	}
	return nil
}

// work is the main function of a worker's process.
func work(address string) error {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // until the test has ended
		os.Exit(0)
	}()
	var now atomic.Int32
	mux := http.NewServeMux()
	for _, like := range []conduct{well, sick, resetting} {
		mux.HandleFunc(fmt.Sprintf("POST /conduct/%d", like), func(w http.ResponseWriter, _ *http.Request) {
			now.Store(int32(like))
			w.WriteHeader(http.StatusNoContent)
		})
	}
	mux.Handle("/", behaving(&now, address, services(address)))
	return (&http.Server{Handler: mux, ReadHeaderTimeout: patience}).Serve(listener)
}

// behaving returns a handler with the present conduct.
func behaving(now *atomic.Int32, address string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Worker", address)
		switch conduct(now.Load()) {
		case sick:
			w.WriteHeader(http.StatusServiceUnavailable)
		case resetting:
			if conn, _, err := http.NewResponseController(w).Hijack(); err == nil {
				_ = conn.(*net.TCPConn).SetLinger(0)
				conn.Close()
			}
		case well:
			next.ServeHTTP(w, r)
		}
	})
}

// services are the handlers for requests of clients.
func services(address string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, address) })
	large := bytes.Repeat([]byte("0123456789abcdef"), largeSize/16)
	mux.HandleFunc("/large", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(large) })
	mux.HandleFunc("POST /echo", func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			w.WriteHeader(http.StatusBadRequest)
		}
		_, _ = w.Write(body)
	})
	mux.HandleFunc("/download", func(w http.ResponseWriter, _ *http.Request) {
		for range parts {
			fmt.Fprintln(w, address)
			w.(http.Flusher).Flush()
			time.Sleep(partTime)
		}
	})
	mux.Handle("/socket", websocket.Server{Handler: func(conn *websocket.Conn) {
		_ = websocket.Message.Send(conn, address)
		_, _ = io.Copy(conn, conn)
	}})
	return mux
}
