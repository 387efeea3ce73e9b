package certs

import (
	"strings"
	"testing"
	"time"
)

func TestForeignCertificateIsServedAsItIs(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	const host = "gantry-webhook.metallb-system.svc"
	data, _, err := RenewCertificateSecretDataIfDue(now, nil, []string{host})
	if err != nil {
		t.Fatal(err)
	}
	s, err := ParseForeignCertificateSecretData(now, data, host)
	if err != nil {
		t.Fatal(err)
	}
	checkClientTrustsServingCertificate(t, now, s.TrustedCABundlePEM, s)
	if !s.NextRenewalTime.Equal(s.Certificate.Leaf.NotAfter) {
		t.Errorf("the next renewal is at %v, want the end of the certificate, %v", s.NextRenewalTime, s.Certificate.Leaf.NotAfter)
	}
	for name, tc := range map[string]struct {
		now  time.Time
		host string
		edit func(map[string][]byte)
		want string
	}{
		"no Secret yet":           {now, host, func(d map[string][]byte) { clear(d) }, "reading the certificate"},
		"of another Service":      {now, "other.metallb-system.svc", func(map[string][]byte) {}, "other.metallb-system.svc"},
		"expired":                 {s.Certificate.Leaf.NotAfter.Add(time.Second), host, func(map[string][]byte) {}, "expired at"},
		"of an issuer without CA": {now, host, func(d map[string][]byte) { delete(d, caBundleSecretEntry) }, "ca.crt has no CA"},
	} {
		edited := map[string][]byte{}
		for k, v := range data {
			edited[k] = v
		}
		tc.edit(edited)
		if _, err := ParseForeignCertificateSecretData(tc.now, edited, tc.host); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: the error is %v, want %q", name, err, tc.want)
		}
	}
}
