// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"
	_ "github.com/jackc/pgx/v5/stdlib" // the driver
	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/nats-io/nats.go"
	"github.com/redis/go-redis/v9"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-alive/caddy-alive/e2e/storages"
)

// s3Address makes the test binary a server that speaks the protocol of S3, at that address.
const s3Address = "E2E_S3"

// engine is what stores for a fleet: a server in a process of its own, or a folder.
type engine struct {
	t       *testing.T
	storage string                      // the global option of Caddy
	check   func(context.Context) error // fails unless it serves
	flush   func(context.Context) error // deletes all that is stored
	module  storageModule               // what Caddy uses

	// of a server
	launch  func() *exec.Cmd
	process *os.Process
	ended   chan struct{} // closed when the process has ended
	log     *os.File

	folder string // if it is one
}

// storageModule is a module for a storage.
type storageModule interface {
	caddy.Provisioner
	caddy.StorageConverter
}

// engines are all engines. Each opens one that runs until the test ends.
var engines = []struct {
	name string
	open func(t *testing.T) *engine
}{
	{"files", openFiles},
	{"redis", openRedis},
	{"nats", openNATS},
	{"postgres", openPostgres},
	{"s3", openS3},
}

// onEachEngine runs a test on all engines at the same time: it waits most of the time.
func onEachEngine(t *testing.T, test func(t *testing.T, e *engine)) {
	if _, err := buildWithStorages(); err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	for _, kind := range engines {
		running.Go(func() {
			t.Run(kind.name, func(t *testing.T) { test(t, kind.open(t)) })
		})
	}
	running.Wait()
}

// openFiles stores in a folder.
func openFiles(t *testing.T) *engine {
	folder := filepath.Join(t.TempDir(), "storage")
	e := &engine{t: t, folder: folder, storage: fmt.Sprintf("file_system %q", folder)}
	e.check = func(context.Context) error { return os.MkdirAll(folder, 0o700) }
	e.flush = func(context.Context) error {
		// moved at first, since Caddys may store in it
		away, err := os.MkdirTemp(filepath.Dir(folder), "emptied")
		if err != nil {
			return err
		}
		entries, err := os.ReadDir(folder)
		for _, entry := range entries {
			err = errors.Join(err, os.Rename(filepath.Join(folder, entry.Name()), filepath.Join(away, entry.Name())))
		}
		return errors.Join(err, os.RemoveAll(away))
	}
	e.start()
	return e
}

// openRedis keeps all in memory only.
func openRedis(t *testing.T) *engine {
	program := installed(t, "redis-server", "redis-server")
	port := freePort(t)
	address := fmt.Sprintf("127.0.0.1:%d", port)
	client := redis.NewClient(&redis.Options{Addr: address, MaxRetries: -1})
	t.Cleanup(func() { client.Close() })
	e := &engine{t: t, storage: "e2e_redis " + address, module: &storages.Redis{Address: address}}
	folder := t.TempDir()
	e.launch = func() *exec.Cmd {
		return exec.Command(program, "--bind", "127.0.0.1", "--port", strconv.Itoa(port), "--dir", folder, "--save", "", "--appendonly", "no")
	}
	e.check = func(ctx context.Context) error { return client.Ping(ctx).Err() }
	e.flush = func(ctx context.Context) error { return client.FlushAll(ctx).Err() }
	e.start()
	return e
}

// openNATS keeps all in files.
func openNATS(t *testing.T) *engine {
	program := installed(t, "nats-server", "nats-server")
	port := freePort(t)
	address := fmt.Sprintf("127.0.0.1:%d", port)
	e := &engine{t: t, storage: "e2e_nats " + address, module: &storages.NATS{Address: address}}
	folder := t.TempDir()
	e.launch = func() *exec.Cmd {
		return exec.Command(program, "-a", "127.0.0.1", "-p", strconv.Itoa(port), "-js", "-sd", folder)
	}
	use := func(with func(nats.JetStreamContext) error) error {
		conn, err := nats.Connect("nats://"+address, nats.MaxReconnects(0))
		if err != nil {
			return err
		}
		defer conn.Close()
		stream, err := conn.JetStream()
		if err != nil {
			return err
		}
		return with(stream)
	}
	e.check = func(context.Context) error {
		return use(func(stream nats.JetStreamContext) error {
			_, err := stream.CreateKeyValue(&nats.KeyValueConfig{Bucket: storages.NATSBucket})
			return err
		})
	}
	e.flush = func(context.Context) error {
		return use(func(stream nats.JetStreamContext) error { return stream.PurgeStream("KV_" + storages.NATSBucket) })
	}
	e.start()
	return e
}

// openPostgres runs Postgres as the user postgres, because it does not run as root.
func openPostgres(t *testing.T) *engine {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin")
	if err != nil || len(found) == 0 {
		skip(t, "no folder /usr/lib/postgresql/*/bin: Debian's package postgresql is not installed")
	}
	bin := found[len(found)-1]
	folder := t.TempDir()
	attributes := new(syscall.SysProcAttr)
	if os.Getuid() == 0 {
		account, err := user.Lookup("postgres")
		if err != nil {
			skip(t, "Postgres does not run as root, and there is no other user for it: %v", err)
		}
		uid, uidErr := strconv.Atoi(account.Uid)
		gid, gidErr := strconv.Atoi(account.Gid)
		err = errors.Join(uidErr, gidErr, os.Chown(folder, uid, gid), os.Chmod(filepath.Dir(folder), 0o711)) // #nosec G302
		if err != nil {
			t.Fatal(err)
		}
		attributes.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	}
	data := filepath.Join(folder, "data")
	run := func(program string, args ...string) *exec.Cmd {
		command := exec.Command(filepath.Join(bin, program), append(args, "-D", data)...)
		command.Dir, command.Env = folder, []string{"LC_ALL=C", "TZ=UTC"}
		command.SysProcAttr = attributes
		return command
	}
	if out, err := run("initdb", "--username=caddy", "--auth=trust", "--no-sync", "--no-instructions").CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v: %s", err, out)
	}
	port := freePort(t)
	address := fmt.Sprintf("postgres://caddy@127.0.0.1:%d/postgres?sslmode=disable&connect_timeout=3", port)
	db, err := sql.Open("pgx", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	e := &engine{t: t, storage: fmt.Sprintf("e2e_postgres %q", address), module: &storages.Postgres{Address: address}}
	e.launch = func() *exec.Cmd {
		return run("postgres", "-h", "127.0.0.1", "-p", strconv.Itoa(port), "-k", "", "-F", "-c", "shared_buffers=4MB", "-c", "max_connections=40")
	}
	e.check = db.PingContext
	e.flush = func(ctx context.Context) error {
		_, err := db.ExecContext(ctx, "truncate e2e_values, e2e_locks")
		return err
	}
	e.start()
	return e
}

// openS3 keeps all in memory only.
func openS3(t *testing.T) *engine {
	address := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	client, err := minio.New(address, &minio.Options{Creds: credentials.NewStaticV4("e2e", "e2e", ""), MaxRetries: 1})
	if err != nil {
		t.Fatal(err)
	}
	e := &engine{t: t, storage: "e2e_s3 " + address, module: &storages.S3{Address: address}}
	e.launch = func() *exec.Cmd {
		command := exec.Command(os.Args[0])
		command.Env = append(os.Environ(), s3Address+"="+address)
		return command
	}
	e.check = func(ctx context.Context) error {
		there, err := client.BucketExists(ctx, storages.S3Bucket)
		if err == nil && !there {
			err = fs.ErrNotExist
		}
		return err
	}
	e.flush = func(ctx context.Context) error {
		for object := range client.ListObjects(ctx, storages.S3Bucket, minio.ListObjectsOptions{Recursive: true}) {
			if err := errors.Join(object.Err, client.RemoveObject(ctx, storages.S3Bucket, object.Key, minio.RemoveObjectOptions{})); err != nil {
				return err
			}
		}
		return nil
	}
	e.start()
	return e
}

// serveS3 is the main function of the process of openS3.
func serveS3(address string) error {
	backend := s3mem.New()
	if err := backend.CreateBucket(storages.S3Bucket); err != nil {
		return err
	}
	return (&http.Server{Addr: address, Handler: gofakes3.New(backend).Server(), ReadHeaderTimeout: patience}).ListenAndServe()
}

// installed returns the path of a program, and skips the test if there is none.
func installed(t *testing.T, program, debian string) string {
	t.Helper()
	for _, name := range []string{program, filepath.Join("/usr/sbin", program)} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	skip(t, "%s (Debian package %s) is not installed", program, debian)
	return ""
}

// open returns the storage as a Caddy has it, until the test ends.
func (e *engine) open(t *testing.T) certmagic.Storage {
	t.Helper()
	if e.module == nil {
		return &certmagic.FileStorage{Path: e.folder}
	}
	ctx, cancel := caddy.NewContext(caddy.Context{Context: t.Context()})
	t.Cleanup(cancel)
	if cleaner, ok := e.module.(caddy.CleanerUpper); ok {
		t.Cleanup(func() { _ = cleaner.Cleanup() })
	}
	if err := e.module.Provision(ctx); err != nil {
		t.Fatal(err)
	}
	storage, err := e.module.CertMagicStorage()
	if err != nil {
		t.Fatal(err)
	}
	return storage
}

// stored returns what is stored of this module, as text.
func stored(t *testing.T, storage certmagic.Storage) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	keys, err := storage.List(ctx, "alive", true)
	if err != nil {
		keys, err = storage.List(ctx, "alive", false) // as with Postgres
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	var text strings.Builder
	for _, key := range keys {
		if value, err := storage.Load(ctx, key); err == nil { // a folder has none
			fmt.Fprintf(&text, "%s: %s\n", key, value)
		}
	}
	return text.String()
}

// start starts the engine, and returns when it serves.
func (e *engine) start() {
	e.t.Helper()
	if e.launch != nil {
		e.run()
	}
	var err error
	if !poll(func() bool {
		ctx, cancel := context.WithTimeout(e.t.Context(), time.Second)
		defer cancel()
		if err = e.check(ctx); err == nil {
			return true
		}
		select {
		case <-e.ended: // at once: its processes of before have not all ended
			e.run()
		default:
		}
		return false
	}) {
		e.t.Fatalf("the engine does not serve: %v", err)
	}
}

// run starts the process. It ends with this one.
func (e *engine) run() {
	e.t.Helper()
	if e.log == nil {
		log, err := os.Create(filepath.Join(e.t.TempDir(), "log"))
		if err != nil {
			e.t.Fatal(err)
		}
		e.log = log
		e.t.Cleanup(func() {
			e.kill()
			log.Close()
			if text, _ := os.ReadFile(log.Name()); e.t.Failed() {
				e.t.Logf("the log of the engine:\n%s", text[max(0, len(text)-2000):])
			}
		})
	}
	command := e.launch()
	if command.SysProcAttr == nil {
		command.SysProcAttr = new(syscall.SysProcAttr)
	}
	command.SysProcAttr.Pdeathsig = syscall.SIGKILL
	command.Stdout, command.Stderr = e.log, e.log
	if err := command.Start(); err != nil {
		e.t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = command.Wait()
	}()
	e.process, e.ended = command.Process, ended
}

// kill ends the engine at once, as kill -9 does. A folder gives way to a file.
func (e *engine) kill() {
	if e.launch != nil {
		_ = e.process.Kill()
		<-e.ended
		return
	}
	if err := errors.Join(os.Rename(e.folder, e.folder+".away"), os.WriteFile(e.folder, nil, 0o600)); err != nil {
		e.t.Fatal(err)
	}
}

// restart starts an engine that was killed.
func (e *engine) restart() {
	e.t.Helper()
	if e.launch == nil {
		if err := errors.Join(os.Remove(e.folder), os.Rename(e.folder+".away", e.folder)); err != nil {
			e.t.Fatal(err)
		}
	}
	e.start()
}

// signal stops or continues a server with the processes that it started.
func (e *engine) signal(signal syscall.Signal) {
	e.t.Helper()
	pids := []int{e.process.Pid}
	for i := 0; i < len(pids); i++ {
		if err := syscall.Kill(pids[i], signal); err != nil && !errors.Is(err, syscall.ESRCH) {
			e.t.Fatal(err)
		}
		pids = append(pids, children(pids[i])...) // they do not become more once it is stopped
	}
}

// children returns the processes that a process started.
func children(pid int) (found []int) {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, stat := range stats {
		text, err := os.ReadFile(stat)
		if err != nil {
			continue // it has ended
		}
		// the name is in parentheses, and can have some itself; then state and parent
		_, after, _ := strings.Cut(string(text[strings.LastIndexByte(string(text), ')'):]), " ")
		fields := strings.Fields(after)
		if len(fields) > 1 && fields[1] == strconv.Itoa(pid) {
			if child, err := strconv.Atoi(filepath.Base(filepath.Dir(stat))); err == nil {
				found = append(found, child)
			}
		}
	}
	return found
}
