package gossip

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
)

// oneObjectReader reads the same Secret and the same Node for each name.
type oneObjectReader struct {
	client.Reader
	secret corev1.Secret
	node   corev1.Node
}

func (r *oneObjectReader) Get(_ context.Context, _ client.ObjectKey, o client.Object, _ ...client.GetOption) error {
	switch o := o.(type) {
	case *corev1.Secret:
		*o = r.secret
	case *corev1.Node:
		*o = r.node
	}
	return nil
}

// wantText checks that an error has the text, or that there is no error for an empty text.
func wantText(t *testing.T, err error, text string) {
	t.Helper()
	if (err == nil) != (text == "") || err != nil && !strings.Contains(err.Error(), text) {
		t.Errorf("the error is %v, want one with %q", err, text)
	}
}

func TestTheKeyComesFromTheFileOrTheSecret(t *testing.T) {
	key := bytes.Repeat([]byte("k"), 32)
	for name, tt := range map[string]struct {
		file, secret []byte
		err          string
	}{
		"a file":         {file: key},
		"a short file":   {file: key[:15], err: "--gossip-key-file"},
		"a Secret":       {secret: key},
		"a short Secret": {secret: key[:15], err: "delete it"},
		"an empty one":   {err: "delete it"},
	} {
		t.Run(name, func(t *testing.T) {
			o := Options{API: &oneObjectReader{secret: corev1.Secret{Data: map[string][]byte{names.GossipKeySecretEntry: tt.secret}}}}
			if tt.file != nil {
				o.KeyFile = filepath.Join(t.TempDir(), "key")
				if err := os.WriteFile(o.KeyFile, tt.file, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			got, err := o.readKey(t.Context())
			wantText(t, err, tt.err)
			if err == nil && !bytes.Equal(got, key) {
				t.Errorf("the key is %q, want %q", got, key)
			}
		})
	}
}

func TestTheAddressIsTheOptionOrThatOfTheNode(t *testing.T) {
	internal := []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: "n1"}, {Type: corev1.NodeInternalIP, Address: "192.0.2.7"}}
	for name, tt := range map[string]struct {
		option    string
		addresses []corev1.NodeAddress
		want, err string
	}{
		"the option":                {option: "2001:db8::1", addresses: internal, want: "2001:db8::1"},
		"the node":                  {addresses: internal, want: "192.0.2.7"},
		"a node without an address": {addresses: internal[:1], err: "--gossip-bind-address"},
	} {
		t.Run(name, func(t *testing.T) {
			o := Options{NodeName: "n1", BindAddress: tt.option, API: &oneObjectReader{node: corev1.Node{Status: corev1.NodeStatus{Addresses: tt.addresses}}}}
			got, err := o.findAddress(t.Context())
			wantText(t, err, tt.err)
			if err == nil && got.String() != tt.want {
				t.Errorf("the address is %s, want %s", got, tt.want)
			}
		})
	}
}
