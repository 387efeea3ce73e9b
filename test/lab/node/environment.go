package node

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// resolveEnvironment returns the variables of the container twice: by name, and in the form that
// exec takes.
func (r *podContainer) resolveEnvironment() (map[string]string, []string, error) {
	known := map[string]string{
		"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "KUBERNETES_SERVICE_HOST": r.pod.agent.config.APIServerClusterIPAddress, "KUBERNETES_SERVICE_PORT": "443",
	}
	order := []string{"PATH", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"}
	for _, e := range r.containerManifest.Env {
		v, err := r.resolveVariableValue(e)
		if err != nil {
			return nil, nil, fmt.Errorf("variable %s: %w", e.Name, err)
		}
		if _, again := known[e.Name]; !again {
			order = append(order, e.Name)
		}
		known[e.Name] = expandVariables(v, known)
	}
	var out []string
	for _, name := range order {
		out = append(out, name+"="+known[name])
	}
	return known, out, nil
}

var variablePattern = regexp.MustCompile(`\$\$|\$\([A-Za-z_.-][A-Za-z0-9_.-]*\)`)

// expandVariables replaces $(NAME) by the variable's value, as the kubelet does. An unknown name
// stays as it is, and $$ becomes a dollar sign.
func expandVariables(text string, known map[string]string) string {
	return variablePattern.ReplaceAllStringFunc(text, func(m string) string {
		if m == "$$" {
			return "$"
		}
		if v, ok := known[m[2:len(m)-1]]; ok {
			return v
		}
		return m
	})
}

// expandVariablesInAll expands the variables in each of the texts.
func expandVariablesInAll(texts []string, known map[string]string) []string {
	var out []string
	for _, t := range texts {
		out = append(out, expandVariables(t, known))
	}
	return out
}

// resolveVariableValue returns the value of a variable: a literal, a field of the Pod, or a key of
// a ConfigMap or Secret.
func (r *podContainer) resolveVariableValue(e corev1.EnvVar) (string, error) {
	from := e.ValueFrom
	if from == nil {
		return e.Value, nil
	}
	ctx, cancel := context.WithTimeout(r.pod.ctx, 10*time.Second)
	defer cancel()
	pick := func(files map[string][]byte, err error, key string, optional *bool) (string, error) {
		if b, ok := files[key]; ok || err != nil || isTruePointer(optional) {
			return string(b), err
		}
		return "", fmt.Errorf("key %s is missing", key)
	}
	switch {
	case from.FieldRef != nil:
		return r.readPodField(from.FieldRef.FieldPath)
	case from.ConfigMapKeyRef != nil:
		ref := from.ConfigMapKeyRef
		files, err := r.pod.readConfigMap(ctx, ref.Name, isTruePointer(ref.Optional))
		return pick(files, err, ref.Key, ref.Optional)
	case from.SecretKeyRef != nil:
		ref := from.SecretKeyRef
		files, err := r.pod.readSecret(ctx, ref.Name, isTruePointer(ref.Optional))
		return pick(files, err, ref.Key, ref.Optional)
	}
	return "", fmt.Errorf("the lab supports only fieldRef, configMapKeyRef and secretKeyRef")
}

// readPodField returns a field of the Pod.
func (r *podContainer) readPodField(path string) (string, error) {
	o := r.pod.firstObject
	if kind, key, ok := strings.Cut(strings.TrimSuffix(path, "']"), "['"); ok {
		return map[string]map[string]string{"metadata.labels": o.Labels, "metadata.annotations": o.Annotations}[kind][key], nil
	}
	var ips []string
	for _, ip := range r.pod.podIPs {
		ips = append(ips, ip.String())
	}
	v, ok := map[string]string{
		"metadata.name": o.Name, "metadata.namespace": o.Namespace, "metadata.uid": string(o.UID),
		"spec.nodeName": r.pod.agent.config.Name, "spec.serviceAccountName": o.Spec.ServiceAccountName,
		"status.podIP": r.pod.primaryIP.String(), "status.podIPs": strings.Join(ips, ","), "status.hostIP": r.pod.agent.config.Addresses[0].String(),
	}[path]
	if !ok {
		return "", fmt.Errorf("the lab does not support the field %s", path)
	}
	return v, nil
}
