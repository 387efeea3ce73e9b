package certs

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"maps"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

var (
	testServerDNSNames = []string{"gantry-webhook.metallb-system.svc"}
	testStartTime      = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
)

const oneDay = 24 * time.Hour

// renewSecretDataAndCheckTrust renews and checks that a client that trusts the bundle accepts the
// certificate.
func renewSecretDataAndCheckTrust(t *testing.T, now time.Time, old map[string][]byte) (map[string][]byte, ParsedCertificateSecret) {
	t.Helper()
	data, state, err := RenewCertificateSecretDataIfDue(now, old, testServerDNSNames)
	if err != nil {
		t.Fatal(err)
	}
	checkClientTrustsServingCertificate(t, now, state.TrustedCABundlePEM, state)
	return data, state
}

// checkClientTrustsServingCertificate checks that a client that trusts the bundle accepts the
// certificate.
func checkClientTrustsServingCertificate(t *testing.T, now time.Time, bundle []byte, s ParsedCertificateSecret) {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(bundle)
	for _, n := range testServerDNSNames {
		if _, err := s.Certificate.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: n, CurrentTime: now}); err != nil {
			t.Errorf("at %v the certificate is refused: %v", now, err)
		}
	}
}

func TestSoundCertificateIsKept(t *testing.T) {
	data, state := renewSecretDataAndCheckTrust(t, testStartTime, nil)
	for _, after := range []time.Duration{0, oneDay, 59 * oneDay} {
		again, same := renewSecretDataAndCheckTrust(t, testStartTime.Add(after), data)
		if !bytes.Equal(again[corev1.TLSCertKey], data[corev1.TLSCertKey]) || !same.NextRenewalTime.Equal(state.NextRenewalTime) {
			t.Errorf("after %v a sound certificate was replaced", after)
		}
	}
}

func TestRenewalComesBeforeExpiry(t *testing.T) {
	data, state := renewSecretDataAndCheckTrust(t, testStartTime, nil)
	if left := state.Certificate.Leaf.NotAfter.Sub(state.NextRenewalTime); left < 20*oneDay {
		t.Errorf("the certificate is renewed %v before its end: a controller that is down for that long breaks the webhook", left)
	}
	_, next := renewSecretDataAndCheckTrust(t, state.NextRenewalTime.Add(time.Second), data)
	if !next.NextRenewalTime.After(state.NextRenewalTime.Add(30 * oneDay)) {
		t.Errorf("at its renewal the certificate was kept, until %v", next.NextRenewalTime)
	}
	// The API server may have the new bundle while a controller still serves the old certificate.
	checkClientTrustsServingCertificate(t, state.NextRenewalTime, next.TrustedCABundlePEM, state)
}

// With the key of a CA, whoever reads the Secret could answer for the webhook.
func TestSecretHasNoKeyOfACA(t *testing.T) {
	check := func(data map[string][]byte) {
		t.Helper()
		if got := slices.Sorted(maps.Keys(data)); !slices.Equal(got, []string{"ca.crt", "tls.crt", "tls.key"}) {
			t.Errorf("the Secret has the entries %v", got)
		}
		if leaf, err := tls.X509KeyPair(data["tls.crt"], data["tls.key"]); err != nil || leaf.Leaf.IsCA {
			t.Errorf("the only key in the Secret is not that of the certificate: %v", err)
		}
	}
	now := testStartTime
	data, state := renewSecretDataAndCheckTrust(t, now, nil)
	check(data)
	for range 5 {
		now = state.NextRenewalTime.Add(time.Second)
		old := data
		data, state = renewSecretDataAndCheckTrust(t, now, data)
		check(data)
		if bytes.Equal(old["ca.crt"], data["ca.crt"]) {
			t.Error("the certificate was renewed without a new CA, whose key is forgotten")
		}
	}
	data[formerCAKeySecretEntry] = data["tls.key"]
	if again, same := renewSecretDataAndCheckTrust(t, now.Add(time.Minute), data); again[formerCAKeySecretEntry] == nil || same.NextRenewalTime.Sub(now) > time.Hour {
		t.Error("in an upgrade, controllers of two versions would take turns at once, or the key of a CA would stay")
	}
	again, next := renewSecretDataAndCheckTrust(t, now.Add(time.Hour), data)
	check(again)
	checkClientTrustsServingCertificate(t, now, next.TrustedCABundlePEM, state)
}

func TestOldAndNewCAAreTrustedDuringRenewal(t *testing.T) {
	data, before := renewSecretDataAndCheckTrust(t, testStartTime, nil)
	first := before.TrustedCABundlePEM
	for now := testStartTime; now.Before(testStartTime.Add(20 * 365 * oneDay)); now = now.Add(30 * oneDay) {
		var next ParsedCertificateSecret
		data, next = renewSecretDataAndCheckTrust(t, now, data)
		// Another controller may still serve the previous certificate, and the API server may have
		// the new bundle.
		checkClientTrustsServingCertificate(t, now, next.TrustedCABundlePEM, before)
		if n := bytes.Count(next.TrustedCABundlePEM, []byte("BEGIN")); n > 2 {
			t.Fatalf("at %v %d CAs are trusted: expired ones remain", now, n)
		}
		before = next
	}
	if bytes.Contains(before.TrustedCABundlePEM, first) {
		t.Error("in 20 years the CA was never replaced")
	}
}

func TestDamagedCertificateIsReplaced(t *testing.T) {
	sound, state := renewSecretDataAndCheckTrust(t, testStartTime, nil)
	other, _ := renewSecretDataAndCheckTrust(t, testStartTime, nil)
	for name, damage := range map[string]func(map[string][]byte){
		"no CA":                   func(d map[string][]byte) { delete(d, caBundleSecretEntry) },
		"garbage for a CA":        func(d map[string][]byte) { d[caBundleSecretEntry] = []byte("garbage") },
		"another's CA":            func(d map[string][]byte) { d[caBundleSecretEntry] = other[caBundleSecretEntry] },
		"the certificate as a CA": func(d map[string][]byte) { d[caBundleSecretEntry] = d[corev1.TLSCertKey] },
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
		_, next := renewSecretDataAndCheckTrust(t, testStartTime, data)
		if next.Certificate.Leaf.Equal(state.Certificate.Leaf) {
			t.Errorf("%s: the certificate was kept", name)
		}
	}
	_, next, err := RenewCertificateSecretDataIfDue(testStartTime, sound, []string{"another.name.svc"})
	if err != nil || next.Certificate.Leaf.VerifyHostname("another.name.svc") != nil {
		t.Errorf("for another name the certificate is %v, %v", next.Certificate.Leaf.DNSNames, err)
	}
}
