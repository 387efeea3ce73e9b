// Package certs keeps the certificate that the webhook serves with: it makes a CA and a certificate signed by it, keeps
// both in a Secret that every controller shares, renews them long before they end, and tells the API server whom to trust.
// Renewing breaks nothing: the API server trusts a new CA before anybody serves with it, and the old one as long as it
// lives. It checks no request.
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

// The entries of the Secret beside those of the type kubernetes.io/tls. caCert holds the CA that signs first, then those
// that it replaced and that have not ended.
const (
	caCert = "ca.crt"
	caKey  = "ca.key"
)

const (
	// caLife is long, since replacing a CA means that everybody has to learn the new one.
	caLife = 10 * 365 * 24 * time.Hour
	// certLife is short enough that the renewal is exercised in the life of a cluster.
	certLife = 90 * 24 * time.Hour
	// skew is how far the clocks of the control plane may be behind.
	skew = time.Hour
)

// State is what the Secret says, parsed.
type State struct {
	// Bundle is the PEM text of the CAs that are to be trusted.
	Bundle []byte
	// Certificate is what the webhook serves with.
	Certificate tls.Certificate
	// Renewal is when Renew has something to do next.
	Renewal time.Time
}

// Renew returns the data that the Secret is to have at the time now for a certificate that holds for the names, and what it
// means. The data is old itself when there is nothing to do; what is missing, damaged, for other names or past two thirds of its
// life is made anew. The error is that of the source of random numbers.
func Renew(now time.Time, old map[string][]byte, names []string) (map[string][]byte, State, error) {
	data := old
	ca, err := readCA(now, data)
	if err != nil {
		fresh, err := newCA(now)
		if err != nil {
			return nil, State{}, err
		}
		data = map[string][]byte{caCert: append(bytes.Clone(fresh.certPEM), alive(now, old[caCert])...), caKey: fresh.keyPEM}
		ca = fresh
	}
	state, err := readState(now, data, ca.cert, names)
	if err == nil {
		return data, state, nil
	}
	cert, err := newCertificate(now, ca, names)
	if err != nil {
		return nil, State{}, err
	}
	data = map[string][]byte{
		caCert: data[caCert], caKey: data[caKey],
		corev1.TLSCertKey: cert.certPEM, corev1.TLSPrivateKeyKey: cert.keyPEM,
	}
	state, err = readState(now, data, ca.cert, names)
	return data, state, err
}

// renewal is when two thirds of a certificate's life are over.
func renewal(c *x509.Certificate) time.Time {
	return c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) * 2 / 3)
}

// errRenew says that a certificate is sound but old.
var errRenew = errors.New("two thirds of its life are over")

// pair is a certificate and its key.
type pair struct {
	cert            *x509.Certificate
	key             crypto.Signer
	certPEM, keyPEM []byte
}

// readCA returns the CA that signs, unless it has to be replaced.
func readCA(now time.Time, data map[string][]byte) (*pair, error) {
	first, _ := pem.Decode(data[caCert])
	if first == nil {
		return nil, fmt.Errorf("%s holds no certificate", caCert)
	}
	whole, err := tls.X509KeyPair(pem.EncodeToMemory(first), data[caKey])
	if err != nil {
		return nil, fmt.Errorf("reading the CA: %w", err)
	}
	key, ok := whole.PrivateKey.(crypto.Signer)
	if !ok || !whole.Leaf.IsCA {
		return nil, fmt.Errorf("%s holds no CA", caCert)
	}
	if now.After(renewal(whole.Leaf)) {
		return nil, errRenew
	}
	return &pair{cert: whole.Leaf, key: key}, nil
}

// alive returns the certificates of a bundle that have not ended.
func alive(now time.Time, bundle []byte) []byte {
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

// readState reads the serving certificate, unless it has to be replaced.
func readState(now time.Time, data map[string][]byte, ca *x509.Certificate, names []string) (State, error) {
	c, err := tls.X509KeyPair(data[corev1.TLSCertKey], data[corev1.TLSPrivateKeyKey])
	if err != nil {
		return State{}, fmt.Errorf("reading the certificate: %w", err)
	}
	if err := c.Leaf.CheckSignatureFrom(ca); err != nil {
		return State{}, fmt.Errorf("checking who signed the certificate: %w", err)
	}
	for _, n := range names {
		if !slices.Contains(c.Leaf.DNSNames, n) {
			return State{}, fmt.Errorf("the certificate does not hold for %s", n)
		}
	}
	next := renewal(c.Leaf)
	if now.After(next) {
		return State{}, errRenew
	}
	if r := renewal(ca); r.Before(next) {
		next = r
	}
	return State{Bundle: alive(now, data[caCert]), Certificate: c, Renewal: next}, nil
}

func newCA(now time.Time) (*pair, error) {
	return sign(nil, &x509.Certificate{
		Subject:   pkix.Name{CommonName: "gantry webhook CA"},
		NotBefore: now.Add(-skew), NotAfter: now.Add(caLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
	})
}

func newCertificate(now time.Time, ca *pair, names []string) (*pair, error) {
	return sign(ca, &x509.Certificate{
		Subject:   pkix.Name{CommonName: names[0]},
		NotBefore: now.Add(-skew), NotAfter: now.Add(certLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames: names,
	})
}

// sign makes a key and a certificate for it, signed by the CA; without one, by itself.
func sign(ca *pair, template *x509.Certificate) (*pair, error) {
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
		parent, signer = ca.cert, ca.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		return nil, fmt.Errorf("signing %s: %w", template.Subject, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("reading what was signed: %w", err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encoding the key: %w", err)
	}
	return &pair{
		cert: cert, key: key,
		certPEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		keyPEM:  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}),
	}, nil
}
