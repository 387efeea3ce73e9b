package certs

import (
	"bytes"
	"crypto/x509"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

var (
	names = []string{"gantry-webhook.metallb-system.svc"}
	start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
)

const day = 24 * time.Hour

// renew renews and checks that a client that trusts the bundle accepts the certificate.
func renew(t *testing.T, now time.Time, old map[string][]byte) (map[string][]byte, State) {
	t.Helper()
	data, state, err := Renew(now, old, names)
	if err != nil {
		t.Fatal(err)
	}
	trusted(t, now, state.Bundle, state)
	return data, state
}

// trusted checks that a client that trusts the bundle accepts the certificate.
func trusted(t *testing.T, now time.Time, bundle []byte, s State) {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(bundle)
	for _, n := range names {
		if _, err := s.Certificate.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: n, CurrentTime: now}); err != nil {
			t.Errorf("at %v the certificate is refused: %v", now, err)
		}
	}
}

func TestNothingIsDoneTwice(t *testing.T) {
	data, state := renew(t, start, nil)
	for _, after := range []time.Duration{0, day, 59 * day} {
		again, same := renew(t, start.Add(after), data)
		if !bytes.Equal(again[corev1.TLSCertKey], data[corev1.TLSCertKey]) || !same.Renewal.Equal(state.Renewal) {
			t.Errorf("after %v a sound certificate was replaced", after)
		}
	}
}

func TestRenewalComesBeforeTheEnd(t *testing.T) {
	data, state := renew(t, start, nil)
	if left := state.Certificate.Leaf.NotAfter.Sub(state.Renewal); left < 20*day {
		t.Errorf("the certificate is renewed %v before its end: a controller that is away that long breaks the webhook", left)
	}
	_, next := renew(t, state.Renewal.Add(time.Second), data)
	if !next.Renewal.After(state.Renewal.Add(30 * day)) {
		t.Errorf("at its renewal the certificate was kept, until %v", next.Renewal)
	}
	if !bytes.Equal(next.Bundle, state.Bundle) {
		t.Error("with the certificate the CA was replaced, which has years left")
	}
	trusted(t, state.Renewal, state.Bundle, next)
}

func TestNewCAIsTrustedBesideTheOld(t *testing.T) {
	data, before := renew(t, start, nil)
	first := before.Bundle
	for now := start; now.Before(start.Add(20 * 365 * day)); now = now.Add(30 * day) {
		var next State
		data, next = renew(t, now, data)
		// Another controller still serves with the certificate from before, and the API server knows one of the two bundles.
		trusted(t, now, next.Bundle, before)
		if n := bytes.Count(next.Bundle, []byte("BEGIN")); n > 3 {
			t.Fatalf("at %v %d CAs are trusted: those that ended stay", now, n)
		}
		before = next
	}
	if bytes.Contains(before.Bundle, first) {
		t.Error("in 20 years the CA was never replaced")
	}
}

func TestWhatIsDamagedIsMadeAnew(t *testing.T) {
	sound, state := renew(t, start, nil)
	other, _ := renew(t, start, nil)
	for name, damage := range map[string]func(map[string][]byte){
		"no CA":                   func(d map[string][]byte) { delete(d, caCert) },
		"no key of the CA":        func(d map[string][]byte) { delete(d, caKey) },
		"garbage for a CA":        func(d map[string][]byte) { d[caCert] = []byte("garbage") },
		"another's key of the CA": func(d map[string][]byte) { d[caKey] = other[caKey] },
		"the certificate as a CA": func(d map[string][]byte) { d[caCert], d[caKey] = d[corev1.TLSCertKey], d[corev1.TLSPrivateKeyKey] },
		"no certificate":          func(d map[string][]byte) { delete(d, corev1.TLSCertKey) },
		"no key":                  func(d map[string][]byte) { delete(d, corev1.TLSPrivateKeyKey) },
		"another's certificate": func(d map[string][]byte) {
			d[corev1.TLSCertKey], d[corev1.TLSPrivateKeyKey] = other[corev1.TLSCertKey], other[corev1.TLSPrivateKeyKey]
		},
	} {
		data := map[string][]byte{}
		for k, v := range sound {
			data[k] = v
		}
		damage(data)
		_, next := renew(t, start, data)
		if next.Certificate.Leaf.Equal(state.Certificate.Leaf) {
			t.Errorf("%s: the certificate was kept", name)
		}
	}
	_, next, err := Renew(start, sound, []string{"another.name.svc"})
	if err != nil || next.Certificate.Leaf.VerifyHostname("another.name.svc") != nil {
		t.Errorf("for another name the certificate is %v, %v", next.Certificate.Leaf.DNSNames, err)
	}
}
