package metricsaccess

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"log/slog"
	"math/big"
	"path/filepath"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
)

const (
	// certificateValidityInterval is longer than a process runs: each start creates a certificate.
	certificateValidityInterval = 10 * 365 * 24 * time.Hour
	// clockSkewInterval is how far the clock of a reader may be behind.
	clockSkewInterval = time.Hour
)

// newServingCertificate creates a certificate that is signed by itself, and returns a function that
// sets it. It hides the metrics and the token from those who only listen. A reader cannot check it,
// as it cannot check that of a kubelet.
func newServingCertificate(clock func() time.Time) (func(*tls.Config), error) {
	now := clock()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: "gantry-metrics"}, DNSNames: []string{"gantry-metrics"},
		NotBefore: now.Add(-clockSkewInterval), NotAfter: now.Add(certificateValidityInterval),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	certificate := &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	return serveCertificate(func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return certificate, nil }), nil
}

// serveCertificate returns a function that sets how a server gets its certificate.
func serveCertificate(getCertificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)) func(*tls.Config) {
	return func(c *tls.Config) {
		c.MinVersion = tls.VersionTLS13
		c.NextProtos = []string{"http/1.1"} // HTTP/2 would cost memory for one reader
		c.GetCertificate = getCertificate
	}
}

// certificateReadInterval is how often a certificate is read from its files. The files of a mounted
// Secret change about a minute after the Secret.
const certificateReadInterval = 10 * time.Second

// certificateFiles is a certificate that a user has in a directory, and may renew.
type certificateFiles struct {
	dir   string
	clock func() time.Time
	log   *slog.Logger

	mu        sync.Mutex // guards what follows
	last      *tls.Certificate
	readAt    time.Time
	lastError string
}

// openCertificateFiles reads the certificate in a directory. The first one has to be usable.
func openCertificateFiles(dir string, clock func() time.Time, log *slog.Logger) (*certificateFiles, error) {
	f := &certificateFiles{dir: dir, clock: clock, log: log}
	if err := f.read(); err != nil {
		return nil, fmt.Errorf("reading the certificate of the metrics (--metrics-certificate-dir): %w", err)
	}
	return f, nil
}

func (f *certificateFiles) read() error {
	c, err := tls.LoadX509KeyPair(filepath.Join(f.dir, corev1.TLSCertKey), filepath.Join(f.dir, corev1.TLSPrivateKeyKey))
	f.readAt = f.clock()
	if err != nil {
		return err
	}
	f.last = &c
	return nil
}

// currentCertificate returns the certificate, which it reads again now and then. While the files
// cannot be used, it returns the last certificate.
func (f *certificateFiles) currentCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.clock().Sub(f.readAt) < certificateReadInterval {
		return f.last, nil
	}
	text := ""
	if err := f.read(); err != nil {
		text = err.Error()
	}
	if text != "" && text != f.lastError {
		f.log.Warn("reading the certificate of the metrics; the last one stays in use", "error", text)
	}
	f.lastError = text
	return f.last, nil
}
