package metricsaccess

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
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

// newSelfSignedCertificate creates a certificate that is signed by itself. It hides the metrics and
// the token from those who only listen. A reader cannot check it, as it cannot check that of a
// kubelet.
func newSelfSignedCertificate(clock func() time.Time) (*tls.Certificate, error) {
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
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
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

	mu sync.Mutex // guards what follows
	// last is served: the last one that was read, or the substitute while none was read.
	last      *tls.Certificate
	wasRead   bool
	readAt    time.Time
	lastError string
}

// openCertificateFiles reads the certificate in a directory. While there is none that can be used,
// the substitute is served: a program must not fail because of its metrics. A reader that checks
// certificates refuses the substitute, and so notices.
func openCertificateFiles(dir string, substitute *tls.Certificate, clock func() time.Time, log *slog.Logger) *certificateFiles {
	f := &certificateFiles{dir: dir, clock: clock, log: log, last: substitute}
	f.read()
	return f
}

// read reads the certificate. It logs an error once.
func (f *certificateFiles) read() {
	f.readAt = f.clock()
	c, err := tls.LoadX509KeyPair(filepath.Join(f.dir, corev1.TLSCertKey), filepath.Join(f.dir, corev1.TLSPrivateKeyKey))
	if err == nil {
		f.last, f.wasRead, f.lastError = &c, true, ""
		return
	}
	if text := err.Error(); text != f.lastError {
		f.lastError = text
		served := "the last one stays in use"
		if !f.wasRead {
			served = "one that is signed by itself is served meanwhile"
		}
		f.log.Warn("reading the certificate of the metrics (--metrics-certificate-dir); "+served, "error", text, "again", certificateReadInterval)
	}
}

// currentCertificate returns the certificate, which it reads again now and then. While the files
// cannot be used, it returns the last certificate.
func (f *certificateFiles) currentCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.clock().Sub(f.readAt) >= certificateReadInterval {
		f.read()
	}
	return f.last, nil
}
