package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// volumeMount is a directory or file that a container sees at another path.
type volumeMount struct {
	Source, PathInContainer string
	ReadOnly                bool
}

// prepareMounts creates the volumes that the container mounts, and returns their sources and
// targets.
func (r *podContainer) prepareMounts() ([]volumeMount, error) {
	var out []volumeMount
	for _, m := range r.containerManifest.VolumeMounts {
		i := slices.IndexFunc(r.pod.firstObject.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == m.Name })
		// execAsContainerProcess mounts the service account's token
		if i < 0 || strings.HasPrefix(m.MountPath, filepath.Dir(serviceAccountDirInContainer)) {
			continue
		}
		dir, err := r.pod.prepareVolume(&r.pod.firstObject.Spec.Volumes[i])
		if err != nil {
			return nil, err
		}
		out = append(out, volumeMount{filepath.Join(dir, m.SubPath), m.MountPath, m.ReadOnly})
	}
	return out, nil
}

// prepareVolume creates a volume and returns its directory. A container sees a ConfigMap or Secret
// as it was when the container started.
func (p *pod) prepareVolume(v *corev1.Volume) (string, error) {
	dir := filepath.Join(p.volumesAndTokensDir(), "volumes", v.Name)
	wait := 10 * time.Second
	_, err := os.Stat(dir)
	mounted := err == nil // an old version is used while the API server is unreachable
	if mounted {
		wait = 2 * time.Second
	}
	ctx, cancel := context.WithTimeout(p.ctx, wait)
	defer cancel()
	switch {
	case v.ConfigMap != nil:
		files, err := p.readConfigMap(ctx, v.ConfigMap.Name, isTruePointer(v.ConfigMap.Optional))
		if err != nil && mounted {
			return dir, nil
		}
		if err != nil {
			return "", err
		}
		return dir, writeVolumeFiles(dir, files, v.ConfigMap.Items)
	case v.Secret != nil:
		files, err := p.readSecret(ctx, v.Secret.SecretName, isTruePointer(v.Secret.Optional))
		if err != nil && mounted {
			return dir, nil
		}
		if err != nil {
			return "", err
		}
		return dir, writeVolumeFiles(dir, files, v.Secret.Items)
	case v.EmptyDir != nil:
	case v.HostPath != nil: // each node has its own directory, none uses the machine's
		dir = filepath.Join(p.agent.config.VolumesAndTokensDir, "hostpath", p.agent.config.Name, v.HostPath.Path)
	default:
		return "", fmt.Errorf("volume %s: the lab supports only configMap, secret, emptyDir and hostPath", v.Name)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	return dir, os.Chmod(dir, 0o777) // the container may run as any user
}

func (p *pod) readConfigMap(ctx context.Context, name string, optional bool) (map[string][]byte, error) {
	c, err := p.agent.client.CoreV1().ConfigMaps(p.firstObject.Namespace).Get(ctx, name, metav1.GetOptions{})
	if optional && apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading ConfigMap %s: %w", name, err)
	}
	files := map[string][]byte{}
	for k, text := range c.Data {
		files[k] = []byte(text)
	}
	for k, b := range c.BinaryData {
		files[k] = b
	}
	return files, nil
}

func (p *pod) readSecret(ctx context.Context, name string, optional bool) (map[string][]byte, error) {
	s, err := p.agent.client.CoreV1().Secrets(p.firstObject.Namespace).Get(ctx, name, metav1.GetOptions{})
	if optional && apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading Secret %s: %w", name, err)
	}
	return s.Data, nil
}

// writeVolumeFiles writes the keys into a directory: all of them, or only those of items, at the
// paths of items.
func writeVolumeFiles(dir string, files map[string][]byte, items []corev1.KeyToPath) error {
	if len(items) == 0 {
		for k := range files {
			items = append(items, corev1.KeyToPath{Key: k, Path: k})
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, i := range items {
		b, ok := files[i.Key]
		if !ok {
			return fmt.Errorf("key %s of a volume is missing", i.Key)
		}
		path := filepath.Join(dir, i.Path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, b, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func isTruePointer(b *bool) bool { return b != nil && *b }
