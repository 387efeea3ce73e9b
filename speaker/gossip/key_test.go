package gossip

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
)

// fixedObjectsAPIReader reads the same Secret and the same Node for each name.
type fixedObjectsAPIReader struct {
	client.WithWatch
	secret corev1.Secret
	node   corev1.Node
}

func (r *fixedObjectsAPIReader) Get(_ context.Context, _ client.ObjectKey, o client.Object, _ ...client.GetOption) error {
	switch o := o.(type) {
	case *corev1.Secret:
		*o = r.secret
	case *corev1.Node:
		*o = r.node
	}
	return nil
}

// checkErrorText checks that an error has the text, or that there is no error for an empty text.
func checkErrorText(t *testing.T, err error, text string) {
	t.Helper()
	if (err == nil) != (text == "") || err != nil && !strings.Contains(err.Error(), text) {
		t.Errorf("the error is %v, want one with %q", err, text)
	}
}

func TestGossipKeyComesFromFileOrSecret(t *testing.T) {
	key, other, third := bytes.Repeat([]byte("k"), 32), bytes.Repeat([]byte("n"), 32), bytes.Repeat([]byte("p"), 32)
	for name, tt := range map[string]struct {
		file, secret []byte
		others       map[string][]byte // by the end of their names
		want         [][]byte
		err          string
	}{
		"a file":                     {file: key, want: [][]byte{key}},
		"a file with a next key":     {file: key, others: map[string][]byte{"-next": other}, want: [][]byte{key, other}},
		"a short file":               {file: key[:15], err: "--gossip-key-file"},
		"a Secret":                   {secret: key, want: [][]byte{key}},
		"a Secret with three keys":   {secret: key, others: map[string][]byte{"-next": other, "-previous": third}, want: [][]byte{key, other, third}},
		"a Secret with a short next": {secret: key, others: map[string][]byte{"-next": other[:15]}, want: [][]byte{key}},
		"a short Secret":             {secret: key[:15], err: "delete it"},
		"an empty one":               {err: "delete it"},
	} {
		t.Run(name, func(t *testing.T) {
			data := map[string][]byte{names.GossipKeySecretEntry: tt.secret}
			o := Options{API: &fixedObjectsAPIReader{secret: corev1.Secret{Data: data}}}
			write := func(suffix string, key []byte) {
				if tt.file == nil {
					data[names.GossipKeySecretEntry+suffix] = key
				} else if err := os.WriteFile(o.KeyFile+suffix, key, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if tt.file != nil {
				o.KeyFile = filepath.Join(t.TempDir(), "key")
				write("", tt.file)
			}
			for suffix, key := range tt.others {
				write(suffix, key)
			}
			got, err := o.readGossipKeys(t.Context())
			checkErrorText(t, err, tt.err)
			if err == nil && !slices.EqualFunc(got, tt.want, bytes.Equal) {
				t.Errorf("the keys are %q, want %q", got, tt.want)
			}
		})
	}
}

func TestGossipAddressIsOptionOrNodeAddress(t *testing.T) {
	internal := []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: "n1"}, {Type: corev1.NodeInternalIP, Address: "192.0.2.7"}}
	dual := []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "2001:db8::7"}, {Type: corev1.NodeInternalIP, Address: "192.0.2.7"}}
	for name, tt := range map[string]struct {
		option    string
		cluster   string // an address of the cluster's first family
		addresses []corev1.NodeAddress
		want, err string
	}{
		"a node that lists the other family first": {cluster: "10.96.0.1", addresses: dual, want: "192.0.2.7"},
		"a cluster whose first family is IPv6":     {cluster: "fd00::1", addresses: dual, want: "2001:db8::7"},
		"a node without the first family":          {cluster: "fd00::1", addresses: internal, want: "192.0.2.7"},
		"a cluster of which nothing is known":      {addresses: dual, want: "2001:db8::7"},

		"the option":                {option: "2001:db8::1", addresses: internal, want: "2001:db8::1"},
		"the node":                  {addresses: internal, want: "192.0.2.7"},
		"a node without an address": {addresses: internal[:1], err: "--gossip-bind-address"},
	} {
		t.Run(name, func(t *testing.T) {
			o := Options{NodeName: "n1", BindAddress: tt.option, API: &fixedObjectsAPIReader{node: corev1.Node{Status: corev1.NodeStatus{Addresses: tt.addresses}}}}
			if tt.cluster != "" {
				o.AddressOfClusterFirstFamily = netip.MustParseAddr(tt.cluster)
			}
			got, err := o.findGossipAddress(t.Context())
			checkErrorText(t, err, tt.err)
			if err == nil && got.String() != tt.want {
				t.Errorf("the address is %s, want %s", got, tt.want)
			}
		})
	}
}

// failingAPIReader fails each request with the same error.
type failingAPIReader struct {
	client.WithWatch
	err error
}

func (r *failingAPIReader) Get(context.Context, client.ObjectKey, client.Object, ...client.GetOption) error {
	return r.err
}

// TestIsAPIUnreachableTellsRequestErrorsFromAnswers has causes for which a saved key must not be
// used: the user has to correct them.
func TestIsAPIUnreachableTellsRequestErrorsFromAnswers(t *testing.T) {
	refused := &url.Error{Op: "Get", URL: "https://10.96.0.1:443/api", Err: errors.New("connection refused")}
	short := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(short, []byte("short"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		options Options
		want    bool
	}{
		"a refused connection": {Options{API: &failingAPIReader{err: refused}}, true},
		"an expired time":      {Options{API: &failingAPIReader{err: context.DeadlineExceeded}}, true},
		"a missing Secret":     {Options{API: &failingAPIReader{err: apierrors.NewNotFound(corev1.Resource("secrets"), "gantry-gossip")}}, false},
		"a missing right":      {Options{API: &failingAPIReader{err: apierrors.NewForbidden(corev1.Resource("secrets"), "gantry-gossip", nil)}}, false},
		"a Secret without key": {Options{API: &fixedObjectsAPIReader{}}, false},
		"a missing key file":   {Options{KeyFile: filepath.Join(t.TempDir(), "absent")}, false},
		"a short key file":     {Options{KeyFile: short}, false},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := tc.options.readGossipKeys(t.Context())
			if got := isAPIUnreachable(err); got != tc.want {
				t.Errorf("the API server counts as unreachable: %v, want %v, for the error %v", got, tc.want, err)
			}
		})
	}
}
