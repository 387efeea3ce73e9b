package certs

import (
	"bytes"
	"crypto/x509"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

var (
	serverNames = []string{"gantry-webhook.metallb-system.svc"}
	startTime   = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
)

const day = 24 * time.Hour

// renewAndCheckTrust renews and checks that a client that trusts the bundle accepts the
// certificate.
func renewAndCheckTrust(t *testing.T, now time.Time, old map[string][]byte) (map[string][]byte, CertificateState) {
	t.Helper()
	data, state, err := RenewSecretData(now, old, serverNames)
	if err != nil {
		t.Fatal(err)
	}
	checkServerTrusted(t, now, state.CABundle, state)
	return data, state
}

// checkServerTrusted checks that a client that trusts the bundle accepts the certificate.
func checkServerTrusted(t *testing.T, now time.Time, bundle []byte, s CertificateState) {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(bundle)
	for _, n := range serverNames {
		if _, err := s.Certificate.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: n, CurrentTime: now}); err != nil {
			t.Errorf("at %v the certificate is refused: %v", now, err)
		}
	}
}

func TestSoundCertificateIsKept(t *testing.T) {
	data, state := renewAndCheckTrust(t, startTime, nil)
	for _, after := range []time.Duration{0, day, 59 * day} {
		again, same := renewAndCheckTrust(t, startTime.Add(after), data)
		if !bytes.Equal(again[corev1.TLSCertKey], data[corev1.TLSCertKey]) || !same.RenewAt.Equal(state.RenewAt) {
			t.Errorf("after %v a sound certificate was replaced", after)
		}
	}
}

func TestRenewalComesBeforeExpiry(t *testing.T) {
	data, state := renewAndCheckTrust(t, startTime, nil)
	if left := state.Certificate.Leaf.NotAfter.Sub(state.RenewAt); left < 20*day {
		t.Errorf("the certificate is renewed %v before its end: a controller that is down for that long breaks the webhook", left)
	}
	_, next := renewAndCheckTrust(t, state.RenewAt.Add(time.Second), data)
	if !next.RenewAt.After(state.RenewAt.Add(30 * day)) {
		t.Errorf("at its renewal the certificate was kept, until %v", next.RenewAt)
	}
	if !bytes.Equal(next.CABundle, state.CABundle) {
		t.Error("the CA was replaced together with the certificate, though it is valid for years")
	}
	checkServerTrusted(t, state.RenewAt, state.CABundle, next)
}

func TestNewCAIsTrustedBesideTheOldOne(t *testing.T) {
	data, before := renewAndCheckTrust(t, startTime, nil)
	first := before.CABundle
	for now := startTime; now.Before(startTime.Add(20 * 365 * day)); now = now.Add(30 * day) {
		var next CertificateState
		data, next = renewAndCheckTrust(t, now, data)
		// Another controller may still serve the previous certificate, and the API server may have
		// the new bundle.
		checkServerTrusted(t, now, next.CABundle, before)
		if n := bytes.Count(next.CABundle, []byte("BEGIN")); n > 3 {
			t.Fatalf("at %v %d CAs are trusted: expired ones remain", now, n)
		}
		before = next
	}
	if bytes.Contains(before.CABundle, first) {
		t.Error("in 20 years the CA was never replaced")
	}
}

func TestDamagedCertificateIsReplaced(t *testing.T) {
	sound, state := renewAndCheckTrust(t, startTime, nil)
	other, _ := renewAndCheckTrust(t, startTime, nil)
	for name, damage := range map[string]func(map[string][]byte){
		"no CA":                   func(d map[string][]byte) { delete(d, caCertSecretKey) },
		"no key of the CA":        func(d map[string][]byte) { delete(d, caKeySecretKey) },
		"garbage for a CA":        func(d map[string][]byte) { d[caCertSecretKey] = []byte("garbage") },
		"another's key of the CA": func(d map[string][]byte) { d[caKeySecretKey] = other[caKeySecretKey] },
		"the certificate as a CA": func(d map[string][]byte) {
			d[caCertSecretKey], d[caKeySecretKey] = d[corev1.TLSCertKey], d[corev1.TLSPrivateKeyKey]
		},
		"no certificate": func(d map[string][]byte) { delete(d, corev1.TLSCertKey) },
		"no key":         func(d map[string][]byte) { delete(d, corev1.TLSPrivateKeyKey) },
		"another's certificate": func(d map[string][]byte) {
			d[corev1.TLSCertKey], d[corev1.TLSPrivateKeyKey] = other[corev1.TLSCertKey], other[corev1.TLSPrivateKeyKey]
		},
	} {
		data := map[string][]byte{}
		for k, v := range sound {
			data[k] = v
		}
		damage(data)
		_, next := renewAndCheckTrust(t, startTime, data)
		if next.Certificate.Leaf.Equal(state.Certificate.Leaf) {
			t.Errorf("%s: the certificate was kept", name)
		}
	}
	_, next, err := RenewSecretData(startTime, sound, []string{"another.name.svc"})
	if err != nil || next.Certificate.Leaf.VerifyHostname("another.name.svc") != nil {
		t.Errorf("for another name the certificate is %v, %v", next.Certificate.Leaf.DNSNames, err)
	}
}
