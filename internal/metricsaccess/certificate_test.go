package metricsaccess

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/internal/option"
)

// writeCertificateFiles writes a new certificate into a directory, as a program for certificates
// does, and returns it.
func writeCertificateFiles(t *testing.T, dir string) []byte {
	t.Helper()
	var c tls.Config
	setCertificate, err := newServingCertificate(time.Now)
	if err != nil {
		t.Fatal(err)
	}
	setCertificate(&c)
	certificate, err := c.GetCertificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(certificate.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]pem.Block{"tls.crt": {Type: "CERTIFICATE", Bytes: certificate.Certificate[0]}, "tls.key": {Type: "PRIVATE KEY", Bytes: key}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certificate.Certificate[0]
}

// TestRenewedCertificateIsServed: a user's certificate is renewed in its files. Files that cannot
// be used, as in the middle of a write, change nothing, and are logged once.
func TestRenewedCertificateIsServed(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	var log bytes.Buffer
	first := writeCertificateFiles(t, dir)
	files, err := openCertificateFiles(dir, func() time.Time { return now }, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	checkServed := func(want []byte) {
		t.Helper()
		if got, err := files.currentCertificate(nil); err != nil || !bytes.Equal(got.Certificate[0], want) {
			t.Errorf("another certificate is served: %v", err)
		}
	}
	checkServed(first)
	if err := os.Truncate(filepath.Join(dir, "tls.crt"), 0); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		now = now.Add(certificateReadInterval)
		checkServed(first)
	}
	if n := strings.Count(log.String(), "the last one stays in use"); n != 1 {
		t.Errorf("the log has %d lines about the certificate, want 1:\n%s", n, &log)
	}
	second := writeCertificateFiles(t, dir)
	now = now.Add(certificateReadInterval)
	checkServed(second)
}

// TestMissingCertificateIsAnError: without its certificate, a program would serve another one that
// no reader trusts.
func TestMissingCertificateIsAnError(t *testing.T) {
	o := option.CommonOptions{MetricsBindAddress: ":0", MetricsProtocol: option.MetricsProtocolHTTPS, MetricsCertificateDir: t.TempDir()}
	if _, err := BuildServerOptions(o, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "--metrics-certificate-dir") {
		t.Errorf("a directory without a certificate gives %v, want an error with the flag", err)
	}
}
