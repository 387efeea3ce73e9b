// Package certs maintains the certificate of the webhook. It creates a CA and a certificate signed
// by it, stores the certificate in a Secret that all controllers share, renews it long before it
// expires, and writes the CA into the webhook configuration. Each certificate has a CA of its own,
// whose key is forgotten as soon as it has signed: whoever reads the Secret cannot sign another
// certificate that the API server trusts. A renewal causes no outage: the API server trusts a new
// CA before any controller serves with it, and trusts the CA of the certificate before until that
// one expires. The package checks no request.
package certs

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// caBundleSecretEntry is the entry of the Secret in addition to those of the type
// kubernetes.io/tls. It holds the CA of the certificate, followed by that of the certificate
// before.
const caBundleSecretEntry = "ca.crt"

// formerCAKeySecretEntry held the key of the CA. A Secret with this entry is renewed.
const formerCAKeySecretEntry = "ca.key"

const (
	// validityInterval of a certificate and its CA is short enough that renewals happen in the life
	// of a cluster.
	validityInterval = 90 * 24 * time.Hour
	// clockSkewInterval is how far the clocks of the control plane may be behind.
	clockSkewInterval = time.Hour
	// formerCAKeyRemovalDelay is how old a Secret with the key of a CA is before it is renewed: in
	// an upgrade, a controller of the version before would write the key again at once.
	formerCAKeyRemovalDelay = 10 * time.Minute
)

// ParsedCertificateSecret is the parsed content of the Secret.
type ParsedCertificateSecret struct {
	// TrustedCABundlePEM is the PEM text of the trusted CAs.
	TrustedCABundlePEM []byte
	// Certificate is the certificate of the webhook's server.
	Certificate tls.Certificate
	// NextRenewalTime is when RenewCertificateSecretDataIfDue has to be called next.
	NextRenewalTime time.Time
}

// RenewCertificateSecretDataIfDue returns the data that the Secret should have now, for a
// certificate with these DNS names, and the parsed form of it. The data is old itself when nothing
// changes. If a part is missing, damaged, for other names, or past two thirds of its life, the
// certificate and its CA are replaced. An error comes from the source of random numbers.
func RenewCertificateSecretDataIfDue(now time.Time, old map[string][]byte, names []string) (map[string][]byte, ParsedCertificateSecret, error) {
	state, err := parseSecretUnlessDueForRenewal(now, old, names)
	if err == nil {
		return old, state, nil
	}
	ca, err := createCA(now)
	if err != nil {
		return nil, ParsedCertificateSecret{}, err
	}
	cert, err := createServingCertificate(now, ca, names)
	if err != nil {
		return nil, ParsedCertificateSecret{}, err
	}
	data := map[string][]byte{
		caBundleSecretEntry: append(bytes.Clone(ca.certPEM), firstUnexpiredCertificate(now, old[caBundleSecretEntry])...),
		corev1.TLSCertKey:   cert.certPEM, corev1.TLSPrivateKeyKey: cert.keyPEM,
	}
	state, err = parseSecretUnlessDueForRenewal(now, data, names)
	return data, state, err
}

// timeAfterTwoThirdsOfLife is when two thirds of a certificate's life are over.
func timeAfterTwoThirdsOfLife(c *x509.Certificate) time.Time {
	return c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) * 2 / 3)
}

// errCertificateDueForRenewal says that a certificate is sound but due for renewal.
var errCertificateDueForRenewal = errors.New("two thirds of its life are over")

// certificateAndPrivateKey is a certificate and its private key.
type certificateAndPrivateKey struct {
	cert            *x509.Certificate
	privateKey      crypto.Signer
	certPEM, keyPEM []byte
}

// firstUnexpiredCertificate returns the first certificate of a bundle, unless it has expired.
func firstUnexpiredCertificate(now time.Time, bundle []byte) []byte {
	first, _ := pem.Decode(bundle)
	if first == nil {
		return nil
	}
	return unexpiredCertificates(now, pem.EncodeToMemory(first))
}

// unexpiredCertificates returns the certificates of a bundle that have not expired.
func unexpiredCertificates(now time.Time, bundle []byte) []byte {
	var out []byte
	for rest := bundle; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return out
		}
		if c, err := x509.ParseCertificate(block.Bytes); err == nil && now.Before(c.NotAfter) {
			out = append(out, pem.EncodeToMemory(block)...)
		}
	}
}

// parseSecretUnlessDueForRenewal returns the parsed Secret, or an error when the certificate must
// be replaced.
func parseSecretUnlessDueForRenewal(now time.Time, data map[string][]byte, names []string) (ParsedCertificateSecret, error) {
	c, err := tls.X509KeyPair(data[corev1.TLSCertKey], data[corev1.TLSPrivateKeyKey])
	if err != nil {
		return ParsedCertificateSecret{}, fmt.Errorf("reading the certificate: %w", err)
	}
	first, _ := pem.Decode(data[caBundleSecretEntry])
	if first == nil {
		return ParsedCertificateSecret{}, fmt.Errorf("%s holds no certificate", caBundleSecretEntry)
	}
	ca, err := x509.ParseCertificate(first.Bytes)
	if err != nil {
		return ParsedCertificateSecret{}, fmt.Errorf("reading the CA: %w", err)
	}
	if err := c.Leaf.CheckSignatureFrom(ca); err != nil {
		return ParsedCertificateSecret{}, fmt.Errorf("checking the certificate's signature: %w", err)
	}
	for _, n := range names {
		if !slices.Contains(c.Leaf.DNSNames, n) {
			return ParsedCertificateSecret{}, fmt.Errorf("the certificate does not hold for %s", n)
		}
	}
	next := timeAfterTwoThirdsOfLife(c.Leaf)
	if r := timeAfterTwoThirdsOfLife(ca); r.Before(next) {
		next = r
	}
	if _, hasKey := data[formerCAKeySecretEntry]; hasKey {
		if r := c.Leaf.NotBefore.Add(clockSkewInterval + formerCAKeyRemovalDelay); r.Before(next) {
			next = r
		}
	}
	if now.After(next) {
		return ParsedCertificateSecret{}, errCertificateDueForRenewal
	}
	return ParsedCertificateSecret{TrustedCABundlePEM: unexpiredCertificates(now, data[caBundleSecretEntry]), Certificate: c, NextRenewalTime: next}, nil
}

func createCA(now time.Time) (*certificateAndPrivateKey, error) {
	return generateKeyAndSignCertificate(nil, &x509.Certificate{
		Subject:   pkix.Name{CommonName: "gantry webhook CA"},
		NotBefore: now.Add(-clockSkewInterval), NotAfter: now.Add(validityInterval),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
	})
}

func createServingCertificate(now time.Time, ca *certificateAndPrivateKey, names []string) (*certificateAndPrivateKey, error) {
	return generateKeyAndSignCertificate(ca, &x509.Certificate{
		Subject:   pkix.Name{CommonName: names[0]},
		NotBefore: now.Add(-clockSkewInterval), NotAfter: now.Add(validityInterval),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames: names,
	})
}

// generateKeyAndSignCertificate creates a key and a certificate for it, signed by the CA; without a
// CA it is self-signed.
func generateKeyAndSignCertificate(ca *certificateAndPrivateKey, template *x509.Certificate) (*certificateAndPrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, fmt.Errorf("choosing a serial number: %w", err)
	}
	parent, signer := template, crypto.Signer(key)
	if ca != nil {
		parent, signer = ca.cert, ca.privateKey
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		return nil, fmt.Errorf("signing %s: %w", template.Subject, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("parsing the signed certificate: %w", err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encoding the key: %w", err)
	}
	return &certificateAndPrivateKey{
		cert: cert, privateKey: key,
		certPEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		keyPEM:  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}),
	}, nil
}
