package certs

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// ParseForeignCertificateSecretData parses the data of a Secret that another program writes, such
// as cert-manager. The certificate must hold for the DNS name. The next renewal is due when the
// certificate expires: the other program has to write a new one before.
func ParseForeignCertificateSecretData(now time.Time, data map[string][]byte, dnsName string) (ParsedCertificateSecret, error) {
	c, err := tls.X509KeyPair(data[corev1.TLSCertKey], data[corev1.TLSPrivateKeyKey])
	if err != nil {
		return ParsedCertificateSecret{}, fmt.Errorf("reading the certificate: %w", err)
	}
	if err := c.Leaf.VerifyHostname(dnsName); err != nil {
		return ParsedCertificateSecret{}, fmt.Errorf("checking the certificate: %w", err)
	}
	if now.After(c.Leaf.NotAfter) {
		return ParsedCertificateSecret{}, fmt.Errorf("the certificate expired at %s: renew it", c.Leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	bundle := unexpiredCertificates(now, data[caBundleSecretEntry])
	if len(bundle) == 0 {
		return ParsedCertificateSecret{}, fmt.Errorf("the entry %s has no CA that is valid: choose an issuer that writes its CA", caBundleSecretEntry)
	}
	return ParsedCertificateSecret{TrustedCABundlePEM: bytes.Clone(bundle), Certificate: c, NextRenewalTime: c.Leaf.NotAfter}, nil
}
