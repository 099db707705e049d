// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Authority is a CA of a test.
type Authority struct {
	tb   testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	File string // its certificate
}

// NewAuthority makes one.
func NewAuthority(tb testing.TB) *Authority {
	tb.Helper()
	a := &Authority{tb: tb}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: fmt.Sprint("CA of a test ", time.Now().UnixNano())},
		NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	var der []byte
	der, a.key = a.sign(template, nil)
	var err error
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		tb.Fatal(err)
	}
	a.File = writePEM(tb, "ca.pem", "CERTIFICATE", der)
	return a
}

// sign makes a certificate and its key; without a parent it signs itself.
func (a *Authority) sign(template, parent *x509.Certificate) ([]byte, *ecdsa.PrivateKey) {
	a.tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.tb.Fatal(err)
	}
	signer := a.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		a.tb.Fatal(err)
	}
	return der, key
}

// Issue makes a certificate for a name, for servers and clients.
func (a *Authority) Issue(name string, until time.Time) (cert tls.Certificate, certFile, keyFile string) {
	a.tb.Helper()
	der, key := a.sign(&x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: until,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.cert)
	encoded, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		a.tb.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key},
		writePEM(a.tb, "cert.pem", "CERTIFICATE", der), writePEM(a.tb, "key.pem", "EC PRIVATE KEY", encoded)
}

// Between makes a certificate for servers and clients, with the name app.test and the
// address 127.0.0.1. From and to are relative to the present time.
func (a *Authority) Between(from, to time.Duration) tls.Certificate {
	a.tb.Helper()
	der, key := a.sign(&x509.Certificate{
		SerialNumber: big.NewInt(2), DNSNames: []string{"app.test"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(from), NotAfter: time.Now().Add(to),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.cert)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// Pool trusts this authority only.
func (a *Authority) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

// Server is the TLS config of one with a certificate for a name.
func (a *Authority) Server(name string) *tls.Config {
	a.tb.Helper()
	cert, _, _ := a.Issue(name, time.Now().Add(time.Hour))
	return &tls.Config{Certificates: []tls.Certificate{cert}}
}

// Mutual is the TLS config of a server that asks clients for a certificate.
func (a *Authority) Mutual(name string) *tls.Config {
	a.tb.Helper()
	config := a.Server(name)
	config.ClientCAs = a.Pool()
	config.ClientAuth = tls.RequireAndVerifyClientCert
	return config
}

func writePEM(tb testing.TB, name, kind string, der []byte) string {
	tb.Helper()
	file := filepath.Join(tb.TempDir(), name)
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		tb.Fatal(err)
	}
	return file
}
