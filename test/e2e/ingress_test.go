package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/test/cluster"
)

// testIngressControllerServiceServesHTTP runs a real nginx behind the Service of an ingress
// controller, and sends requests as browsers do.
func testIngressControllerServiceServesHTTP(ctx context.Context, t *testing.T, s *cluster.Cluster) {
	if _, err := os.Stat("/usr/sbin/nginx"); err != nil {
		t.Skip("nginx is missing: apt-get install nginx-light")
	}
	failOnError(t, s.ApplyManifests(ctx, strings.Replace(cluster.ExampleServiceAndDeploymentManifest, "type: LoadBalancer", "type: ClusterIP", 1)))
	failOnError(t, s.ApplyManifests(ctx, readManualManifest(t, "004-ingress.yaml")))
	kubectl := createNamespaceAndKubectlFunc(ctx, t, s, "ingress-nginx")
	roots := createTLSSecret(ctx, t, s, "tekton.k8s.local")
	failOnError(t, s.API.Create(ctx, &corev1.ConfigMap{
		ObjectMeta: newObjectMeta("ingress-nginx", "ingress-nginx-controller"), Data: map[string]string{"nginx.conf": nginxConfigFromIngresses(ctx, t, s)},
	}))
	kubectl(readManualManifest(t, "004-ingress-controller.yaml"), "apply", "-f", "-")
	address, err := s.AwaitFirstAddressOfService(ctx, "ingress-nginx", "ingress-nginx-controller")
	failOnError(t, err)

	name := "tekton.k8s.local"
	visit := func(scheme, port string) (string, error) {
		resolve := func(ctx context.Context, network, _ string) (net.Conn, error) {
			// like a line in the hosts file
			return s.NamespaceOfHost("client").Dial(ctx, network, net.JoinHostPort(address.String(), port))
		}
		c := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
			DialContext: resolve, TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true,
		}}
		r, err := c.Get(scheme + "://" + name + "/about")
		if err != nil {
			return "", err
		}
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		if r.StatusCode != http.StatusOK {
			err = fmt.Errorf("status %s", r.Status)
		}
		return string(b) + "client: " + r.Header.Get("X-Client") + "\n", err
	}
	for scheme, port := range map[string]string{"http": "80", "https": "443"} {
		var body string
		failOnError(t, cluster.AwaitNoError(ctx, scheme+" through the ingress controller", func(context.Context) (err error) {
			body, err = visit(scheme, port)
			return err
		}))
		for _, want := range []string{"pod: tekton-dashboard-", "host: tekton.k8s.local\n", "path: /about\n", "client: 192.168.0.100\n"} {
			if !strings.Contains(body, want) {
				t.Errorf("over %s the answer lacks %q:\n%s", scheme, want, body)
			}
		}
	}
	name = "other.k8s.local"
	if body, err := visit("http", "80"); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("a host without a rule gives %q (%v), want 404", body, err)
	}
}

// nginxConfigFromIngresses returns the configuration that an ingress controller would generate from
// the Ingresses, with a header that the test checks.
func nginxConfigFromIngresses(ctx context.Context, t *testing.T, s *cluster.Cluster) string {
	t.Helper()
	var list networkingv1.IngressList
	failOnError(t, s.API.List(ctx, &list))
	var servers strings.Builder
	for _, i := range list.Items {
		for _, rule := range i.Spec.Rules {
			fmt.Fprintf(&servers, "server {\n  listen 80;\n  listen 443 ssl;\n  server_name %s;\n", rule.Host)
			for _, p := range rule.HTTP.Paths {
				svc, err := s.GetService(ctx, i.Namespace, p.Backend.Service.Name)
				failOnError(t, err)
				fmt.Fprintf(&servers, "  location %s { proxy_pass http://%s:%d; proxy_set_header Host $host; add_header X-Client $remote_addr; }\n",
					p.Path, svc.Spec.ClusterIP, p.Backend.Service.Port.Number)
			}
			fmt.Fprint(&servers, "}\n")
		}
	}
	return `daemon off;
user root;
pid /var/lib/nginx-lab/pid;
events {}
http {
  access_log off;
  client_body_temp_path /var/lib/nginx-lab/body;
  proxy_temp_path /var/lib/nginx-lab/proxy;
  fastcgi_temp_path /var/lib/nginx-lab/fastcgi;
  uwsgi_temp_path /var/lib/nginx-lab/uwsgi;
  scgi_temp_path /var/lib/nginx-lab/scgi;
  ssl_certificate /etc/nginx-lab-tls/tls.crt;
  ssl_certificate_key /etc/nginx-lab-tls/tls.key;
  server { listen 10254; location = /healthz { return 200; } }
  server { listen 80 default_server; listen 443 ssl default_server; return 404; }
` + servers.String() + "}\n"
}

func newObjectMeta(namespace, name string) (m metav1.ObjectMeta) {
	m.Namespace, m.Name = namespace, name
	return m
}

// createTLSSecret creates a certificate for the name in a Secret, and returns the pool for
// clients to trust it.
func createTLSSecret(ctx context.Context, t *testing.T, s *cluster.Cluster, name string) *x509.CertPool {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	failOnError(t, err)
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	failOnError(t, err)
	keyDER, err := x509.MarshalECPrivateKey(key)
	failOnError(t, err)
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	failOnError(t, client.IgnoreAlreadyExists(s.API.Create(ctx, &corev1.Secret{
		ObjectMeta: newObjectMeta("ingress-nginx", "certificate"), Type: corev1.SecretTypeTLS,
		Data: map[string][]byte{corev1.TLSCertKey: text, corev1.TLSPrivateKeyKey: pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER})},
	})))
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(text)
	return pool
}
