package metricsaccess

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"time"
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
	return func(c *tls.Config) {
		c.MinVersion = tls.VersionTLS13
		c.NextProtos = []string{"http/1.1"} // HTTP/2 would cost memory for one reader
		c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return certificate, nil }
	}, nil
}
