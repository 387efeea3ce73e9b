// Package certs maintains the certificate of the webhook. It creates a CA and a certificate signed
// by it, stores both in a Secret that all controllers share, renews them long before they expire,
// and writes the CA into the webhook configuration. A renewal causes no outage: the API server
// trusts a new CA before any controller serves with it, and trusts the old CA until it expires. The
// package checks no request.
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

// The entries of the Secret in addition to those of the type kubernetes.io/tls. caBundleSecretEntry
// holds the CA that signs, followed by older CAs that have not expired.
const (
	caBundleSecretEntry     = "ca.crt"
	caPrivateKeySecretEntry = "ca.key"
)

const (
	// caValidityInterval is long, because every client must learn a new CA.
	caValidityInterval = 10 * 365 * 24 * time.Hour
	// servingCertificateValidityInterval is short enough that renewals happen in the life of a
	// cluster.
	servingCertificateValidityInterval = 90 * 24 * time.Hour
	// clockSkewInterval is how far the clocks of the control plane may be behind.
	clockSkewInterval = time.Hour
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
// changes. A part that is missing, damaged, for other names, or past two thirds of its life is
// replaced. An error comes from the source of random numbers.
func RenewCertificateSecretDataIfDue(now time.Time, old map[string][]byte, names []string) (map[string][]byte, ParsedCertificateSecret, error) {
	data := old
	ca, err := parseSigningCAUnlessDueForRenewal(now, data)
	if err != nil {
		fresh, err := createCA(now)
		if err != nil {
			return nil, ParsedCertificateSecret{}, err
		}
		data = map[string][]byte{caBundleSecretEntry: append(bytes.Clone(fresh.certPEM), unexpiredCertificates(now, old[caBundleSecretEntry])...), caPrivateKeySecretEntry: fresh.keyPEM}
		ca = fresh
	}
	state, err := parseServingCertificateUnlessDueForRenewal(now, data, ca.cert, names)
	if err == nil {
		return data, state, nil
	}
	cert, err := createServingCertificate(now, ca, names)
	if err != nil {
		return nil, ParsedCertificateSecret{}, err
	}
	data = map[string][]byte{
		caBundleSecretEntry: data[caBundleSecretEntry], caPrivateKeySecretEntry: data[caPrivateKeySecretEntry],
		corev1.TLSCertKey: cert.certPEM, corev1.TLSPrivateKeyKey: cert.keyPEM,
	}
	state, err = parseServingCertificateUnlessDueForRenewal(now, data, ca.cert, names)
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

// parseSigningCAUnlessDueForRenewal returns the CA that signs, or an error when it must be
// replaced.
func parseSigningCAUnlessDueForRenewal(now time.Time, data map[string][]byte) (*certificateAndPrivateKey, error) {
	first, _ := pem.Decode(data[caBundleSecretEntry])
	if first == nil {
		return nil, fmt.Errorf("%s holds no certificate", caBundleSecretEntry)
	}
	whole, err := tls.X509KeyPair(pem.EncodeToMemory(first), data[caPrivateKeySecretEntry])
	if err != nil {
		return nil, fmt.Errorf("reading the CA: %w", err)
	}
	key, ok := whole.PrivateKey.(crypto.Signer)
	if !ok || !whole.Leaf.IsCA {
		return nil, fmt.Errorf("%s holds no CA", caBundleSecretEntry)
	}
	if now.After(timeAfterTwoThirdsOfLife(whole.Leaf)) {
		return nil, errCertificateDueForRenewal
	}
	return &certificateAndPrivateKey{cert: whole.Leaf, privateKey: key}, nil
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

// parseServingCertificateUnlessDueForRenewal returns the parsed Secret, or an error when the
// serving certificate must be replaced.
func parseServingCertificateUnlessDueForRenewal(now time.Time, data map[string][]byte, ca *x509.Certificate, names []string) (ParsedCertificateSecret, error) {
	c, err := tls.X509KeyPair(data[corev1.TLSCertKey], data[corev1.TLSPrivateKeyKey])
	if err != nil {
		return ParsedCertificateSecret{}, fmt.Errorf("reading the certificate: %w", err)
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
	if now.After(next) {
		return ParsedCertificateSecret{}, errCertificateDueForRenewal
	}
	if r := timeAfterTwoThirdsOfLife(ca); r.Before(next) {
		next = r
	}
	return ParsedCertificateSecret{TrustedCABundlePEM: unexpiredCertificates(now, data[caBundleSecretEntry]), Certificate: c, NextRenewalTime: next}, nil
}

func createCA(now time.Time) (*certificateAndPrivateKey, error) {
	return generateKeyAndSignCertificate(nil, &x509.Certificate{
		Subject:   pkix.Name{CommonName: "gantry webhook CA"},
		NotBefore: now.Add(-clockSkewInterval), NotAfter: now.Add(caValidityInterval),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
	})
}

func createServingCertificate(now time.Time, ca *certificateAndPrivateKey, names []string) (*certificateAndPrivateKey, error) {
	return generateKeyAndSignCertificate(ca, &x509.Certificate{
		Subject:   pkix.Name{CommonName: names[0]},
		NotBefore: now.Add(-clockSkewInterval), NotAfter: now.Add(servingCertificateValidityInterval),
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
