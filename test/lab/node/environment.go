package node

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// environment returns the container's variables by name, and as the process takes them.
func (r *run) environment() (map[string]string, []string, error) {
	known := map[string]string{
		"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443",
	}
	order := []string{"PATH", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"}
	for _, e := range r.spec.Env {
		v, err := r.value(e)
		if err != nil {
			return nil, nil, fmt.Errorf("variable %s: %w", e.Name, err)
		}
		if _, again := known[e.Name]; !again {
			order = append(order, e.Name)
		}
		known[e.Name] = expand(v, known)
	}
	var out []string
	for _, name := range order {
		out = append(out, name+"="+known[name])
	}
	return known, out, nil
}

var reference = regexp.MustCompile(`\$\$|\$\([A-Za-z_.-][A-Za-z0-9_.-]*\)`)

// expand puts values in for $(NAME), as the kubelet does: what is not known stays, and $$ is a dollar sign.
func expand(text string, known map[string]string) string {
	return reference.ReplaceAllStringFunc(text, func(m string) string {
		if m == "$$" {
			return "$"
		}
		if v, ok := known[m[2:len(m)-1]]; ok {
			return v
		}
		return m
	})
}

// expandAll does so in each of the texts.
func expandAll(texts []string, known map[string]string) []string {
	var out []string
	for _, t := range texts {
		out = append(out, expand(t, known))
	}
	return out
}

// value resolves a variable: a literal, a field of the Pod, or a key of a ConfigMap or Secret.
func (r *run) value(e corev1.EnvVar) (string, error) {
	from := e.ValueFrom
	if from == nil {
		return e.Value, nil
	}
	ctx, cancel := context.WithTimeout(r.p.ctx, 10*time.Second)
	defer cancel()
	pick := func(files map[string][]byte, err error, key string, optional *bool) (string, error) {
		if b, ok := files[key]; ok || err != nil || isTrue(optional) {
			return string(b), err
		}
		return "", fmt.Errorf("key %s is not there", key)
	}
	switch {
	case from.FieldRef != nil:
		return r.field(from.FieldRef.FieldPath)
	case from.ConfigMapKeyRef != nil:
		ref := from.ConfigMapKeyRef
		files, err := r.p.configMap(ctx, ref.Name, isTrue(ref.Optional))
		return pick(files, err, ref.Key, ref.Optional)
	case from.SecretKeyRef != nil:
		ref := from.SecretKeyRef
		files, err := r.p.secret(ctx, ref.Name, isTrue(ref.Optional))
		return pick(files, err, ref.Key, ref.Optional)
	}
	return "", fmt.Errorf("the lab knows fieldRef, configMapKeyRef and secretKeyRef")
}

// field returns a field of the Pod.
func (r *run) field(path string) (string, error) {
	o := r.p.first
	if kind, key, ok := strings.Cut(strings.TrimSuffix(path, "']"), "['"); ok {
		return map[string]map[string]string{"metadata.labels": o.Labels, "metadata.annotations": o.Annotations}[kind][key], nil
	}
	var ips []string
	for _, ip := range r.p.ips {
		ips = append(ips, ip.String())
	}
	v, ok := map[string]string{
		"metadata.name": o.Name, "metadata.namespace": o.Namespace, "metadata.uid": string(o.UID),
		"spec.nodeName": r.p.a.c.Name, "spec.serviceAccountName": o.Spec.ServiceAccountName,
		"status.podIP": r.p.ip.String(), "status.podIPs": strings.Join(ips, ","), "status.hostIP": r.p.a.c.Addresses[0].String(),
	}[path]
	if !ok {
		return "", fmt.Errorf("the lab does not know the field %s", path)
	}
	return v, nil
}
