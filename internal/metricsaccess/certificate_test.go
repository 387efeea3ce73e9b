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
	certificate, err := newSelfSignedCertificate(time.Now)
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
	files := openCertificateFiles(dir, nil, func() time.Time { return now }, slog.New(slog.NewTextHandler(&log, nil)))
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

// TestProgramWithoutItsCertificateServesMetrics: a program must not fail because of its metrics. It
// serves the user's certificate as soon as the files can be read, and says until then that it
// serves another one.
func TestProgramWithoutItsCertificateServesMetrics(t *testing.T) {
	for name, prepare := range map[string]func(t *testing.T, dir string){
		"no files": func(*testing.T, string) {},
		"files that cannot be used": func(t *testing.T, dir string) {
			writeCertificateFiles(t, dir)
			if err := os.Truncate(filepath.Join(dir, "tls.key"), 0); err != nil {
				t.Fatal(err)
			}
		},
		"the key of another certificate": func(t *testing.T, dir string) {
			writeCertificateFiles(t, dir)
			key, err := os.ReadFile(filepath.Join(dir, "tls.key"))
			if err != nil {
				t.Fatal(err)
			}
			writeCertificateFiles(t, dir)
			if err := os.WriteFile(filepath.Join(dir, "tls.key"), key, 0o600); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir, now := t.TempDir(), time.Now()
			prepare(t, dir)
			var log bytes.Buffer
			o := option.CommonOptions{MetricsBindAddress: ":0", MetricsProtocol: option.MetricsProtocolHTTPS, MetricsCertificateDir: dir}
			server, err := buildServerOptions(o, func() time.Time { return now }, slog.New(slog.NewTextHandler(&log, nil)))
			if err != nil {
				t.Fatalf("the program cannot start: %v", err)
			}
			var served tls.Config
			for _, set := range server.TLSOpts {
				set(&served)
			}
			readServed := func() []byte {
				t.Helper()
				c, err := served.GetCertificate(nil)
				if err != nil {
					t.Fatal(err)
				}
				return c.Certificate[0]
			}
			first := readServed()
			now = now.Add(certificateReadInterval)
			if again := readServed(); len(first) == 0 || !bytes.Equal(again, first) {
				t.Error("without the files, the certificate changes")
			}
			if text := log.String(); strings.Count(text, "level=WARN") != 1 || !strings.Contains(text, "--metrics-certificate-dir") || !strings.Contains(text, "signed by itself") {
				t.Errorf("the log has not one warning with the flag and what is served:\n%s", text)
			}
			own := writeCertificateFiles(t, dir)
			now = now.Add(certificateReadInterval)
			if !bytes.Equal(readServed(), own) {
				t.Error("the files can be read, and another certificate is served")
			}
		})
	}
}
