// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// selfSigned writes a certificate for 127.0.0.1 and its key, and returns a pool that
// trusts it.
func selfSigned(t *testing.T, certificate, key string) *x509.CertPool {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "the authority's own"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	signed, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: signed})
	for name, content := range map[string][]byte{certificate: text, key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})} {
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(text)
	return pool
}

// runBeside runs a server until the test ends.
func runBeside(t *testing.T, folder string, environment []string, name string, args ...string) {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		skip(t, "%s (Debian package pebble) is not installed", name)
	}
	log, err := os.Create(filepath.Join(folder, filepath.Base(name)+".log"))
	if err != nil {
		t.Fatal(err)
	}
	command := exec.CommandContext(t.Context(), path, args...)
	command.Dir, command.Env = folder, append(os.Environ(), environment...)
	command.Stdout, command.Stderr = log, log
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = command.Process.Kill()
		_ = command.Wait()
		log.Close()
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("the log of %s:\n%s", name, text[max(0, len(text)-3000):])
		}
	})
}

// The example of a public site gets a certificate from a real ACME server. Clients
// verify it, and requests go to the upstreams in turn.
func TestPublicSite_GetsACertificateByACME(t *testing.T) {
	folder := t.TempDir()
	trusted := selfSigned(t, filepath.Join(folder, "cert.pem"), filepath.Join(folder, "key.pem"))
	acme, roots, names, httpPort, httpsPort := freePort(t), freePort(t), freePort(t), freePort(t), freePort(t)
	config := fmt.Sprintf(`{"pebble": {"listenAddress": "127.0.0.1:%d", "managementListenAddress": "127.0.0.1:%d", "certificate": "cert.pem", "privateKey": "key.pem", "httpPort": %d, "tlsPort": %d}}`, acme, roots, httpPort, httpsPort)
	if err := os.WriteFile(filepath.Join(folder, "pebble.json"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	runBeside(t, folder, nil, "pebble-challtestsrv", "-defaultIPv4", "127.0.0.1", "-defaultIPv6", "", "-dns01", fmt.Sprintf("127.0.0.1:%d", names),
		"-http01", "", "-https01", "", "-tlsalpn01", "", "-management", fmt.Sprintf("127.0.0.1:%d", freePort(t)))
	runBeside(t, folder, []string{"PEBBLE_VA_NOSLEEP=1", "PEBBLE_WFE_NONCEREJECT=0"}, "pebble", "-config", "pebble.json", "-dnsserver", fmt.Sprintf("127.0.0.1:%d", names))
	authority := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: trusted}}}
	var root []byte
	eventually(t, "the authority answers", func() bool {
		response, err := authority.Get(fmt.Sprintf("https://127.0.0.1:%d/roots/0", roots))
		if err != nil {
			return false
		}
		defer response.Body.Close()
		root, err = io.ReadAll(response.Body)
		return err == nil && response.StatusCode == http.StatusOK
	})

	one, two := startBackend(t), startBackend(t)
	site, err := os.ReadFile("../examples/public-https/Caddyfile")
	if err != nil {
		t.Fatal(err)
	}
	caddy, err := build()
	if err != nil {
		t.Fatal(err)
	}
	c := &instance{t: t, caddy: caddy, client: http.DefaultClient, folder: folder, config: filepath.Join(folder, "Caddyfile"), admin: fmt.Sprintf("127.0.0.1:%d", freePort(t))}
	text := fmt.Sprintf("{\n\tadmin %s\n\tpersist_config off\n\tstorage file_system %q\n\thttp_port %d\n\thttps_port %d\n\tacme_ca https://127.0.0.1:%d/dir\n\tacme_ca_root %q\n}\n%s",
		c.admin, filepath.Join(folder, "storage"), httpPort, httpsPort, acme, filepath.Join(folder, "cert.pem"), strings.NewReplacer("app1:8080", one.addr, "app2:8080", two.addr).Replace(string(site)))
	if err := os.WriteFile(c.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c.start()
	t.Cleanup(func() { c.stop() })

	issued := x509.NewCertPool()
	if !issued.AppendCertsFromPEM(root) {
		t.Fatalf("no certificate: %s", root)
	}
	visitor := &http.Client{Transport: &http.Transport{
		ForceAttemptHTTP2: true,
		TLSClientConfig:   &tls.Config{RootCAs: issued, ServerName: "example.com"},
	}}
	served := make(map[string]int)
	ask := func() bool {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, fmt.Sprintf("https://127.0.0.1:%d/", httpsPort), nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Host = "example.com"
		response, err := visitor.Do(request)
		if err != nil {
			return false
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		served[string(body)]++
		return err == nil && response.StatusCode == http.StatusOK && response.TLS.PeerCertificates[0].VerifyHostname("example.com") == nil
	}
	eventually(t, "the site has a certificate that clients trust", ask)
	for range 9 {
		if !ask() {
			t.Error("a request failed")
		}
	}
	if served[one.addr] != 5 || served[two.addr] != 5 {
		t.Errorf("served by %v, want 5 each", served)
	}
}
