// Package bundle has support bundles: archives with the objects that kubectl gantry reads, as they
// were at one moment. A bundle has no Secret, password or token, and of the annotations of others
// only those that are meant for Gantry. A Client reads from a bundle as from an API server. Nothing
// here writes to a cluster.
package bundle

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"
)

// formatVersion is the version of the archive's layout.
const formatVersion = 1

// Bundle is what one cluster had at one moment.
type Bundle struct {
	Manifest Manifest
	// objectsByResource are the objects of each resource, such as "services".
	objectsByResource map[string][]client.Object
	// routePageByPod are the pages with the routes of speakers.
	routePageByPod map[string][]byte
}

// Manifest says how a Bundle was made, and what it lacks.
type Manifest struct {
	FormatVersion int `json:"formatVersion"`
	// TakenAt is the time of the API server after the last reading.
	TakenAt metav1.Time `json:"takenAt"`
	// GantryNamespace has the objects of Gantry, UserNamespace is the one that the user works in.
	GantryNamespace string `json:"gantryNamespace"`
	UserNamespace   string `json:"userNamespace"`
	// FastestAPIAnswerDelay is how long the fastest answer of the API server took.
	FastestAPIAnswerDelay metav1.Duration `json:"fastestAPIAnswer"`
	Readings              []Reading       `json:"readings"`
	// PasswordSecrets say of the Secrets that BGPPeers name whether they can be used.
	PasswordSecrets []PasswordSecret `json:"passwordSecrets,omitempty"`
	// DeniedRights are rights that Gantry's own programs need and lack.
	DeniedRights []AccountRight `json:"deniedRights,omitempty"`
	// CannotReviewRights is set if the user may not ask for the rights of Gantry's programs.
	CannotReviewRights bool `json:"cannotReviewRights,omitempty"`
	// FailureByPod says why a Pod's page with routes is missing.
	FailureByPod map[string]string `json:"failureByPod,omitempty"`
}

// Reading is what was read of one resource.
type Reading struct {
	Resource string `json:"resource"`
	// Namespaces were read as a whole. An empty one stands for all of them.
	Namespaces []string `json:"namespaces,omitempty"`
	// IsAbsent is set if the API server does not know the resource.
	IsAbsent bool `json:"isAbsent,omitempty"`
	// IsForbidden is set if the user may not read it in all namespaces.
	IsForbidden bool `json:"isForbidden,omitempty"`
	// Failure is any other error.
	Failure string `json:"failure,omitempty"`
}

// AccountRight is a right of a ServiceAccount.
type AccountRight struct {
	Account client.ObjectKey                   `json:"account"`
	Right   authorizationv1.ResourceAttributes `json:"right"`
}

// PasswordSecret is what a Bundle has instead of a Secret: whether its password can be used.
type PasswordSecret struct {
	Name string `json:"name"`
	Type string `json:"type"`
	// Substitute has the faults of the password and not its text; nil if there is no password.
	Substitute *string `json:"substitute,omitempty"`
}

// CountObjects returns how many objects there are.
func (b *Bundle) CountObjects() int {
	n := 0
	for _, all := range b.objectsByResource {
		n += len(all)
	}
	return n
}

// DescribeLacks says what could not be read; nothing if all could.
func (b *Bundle) DescribeLacks() []string {
	var out []string
	for _, r := range b.Manifest.Readings {
		switch {
		case r.Failure != "":
			out = append(out, r.Failure)
		case r.IsForbidden && len(r.Namespaces) > 0:
			out = append(out, fmt.Sprintf("%s outside of namespace %s (no right)", r.Resource, strings.Join(r.Namespaces, " and ")))
		case r.IsForbidden:
			out = append(out, r.Resource+" (no right)")
		}
	}
	if b.Manifest.CannotReviewRights {
		out = append(out, "the rights of Gantry's programs (no right)")
	}
	if n := len(b.Manifest.FailureByPod); n > 0 {
		out = append(out, fmt.Sprintf("the routes of %d speakers", n))
	}
	return out
}

// RoutePage returns the page with the routes of a speaker.
func (b *Bundle) RoutePage(pod string) ([]byte, error) {
	if page, ok := b.routePageByPod[pod]; ok {
		return page, nil
	}
	if why := b.Manifest.FailureByPod[pod]; why != "" {
		return nil, errors.New(why)
	}
	return nil, fmt.Errorf("the bundle has no routes of Pod %s", pod)
}

// The files of the archive.
const (
	manifestFile     = "bundle.json"
	objectsDirectory = "objects"
	routesDirectory  = "routes"
)

// WriteArchive writes the Bundle as a tar archive, compressed by gzip.
func (b *Bundle) WriteArchive(w io.Writer, scheme *runtime.Scheme) error {
	compressor := gzip.NewWriter(w)
	archive := tar.NewWriter(compressor)
	files := map[string][]byte{}
	for pod, page := range b.routePageByPod {
		files[path.Join(routesDirectory, pod+".json")] = page
	}
	for resource, all := range b.objectsByResource {
		text, err := encodeObjects(all, scheme)
		if err != nil {
			return fmt.Errorf("encoding the %s: %w", resource, err)
		}
		files[path.Join(objectsDirectory, resource+".json")] = text
	}
	text, err := json.MarshalIndent(b.Manifest, "", " ")
	if err != nil {
		return fmt.Errorf("encoding the bundle: %w", err)
	}
	files[manifestFile] = text
	for _, name := range slices.Sorted(maps.Keys(files)) {
		header := &tar.Header{Name: name, Mode: 0o644, Size: int64(len(files[name])), ModTime: b.Manifest.TakenAt.Time}
		if err := archive.WriteHeader(header); err != nil {
			return fmt.Errorf("writing the bundle: %w", err)
		}
		if _, err := archive.Write(files[name]); err != nil {
			return fmt.Errorf("writing the bundle: %w", err)
		}
	}
	if err := errors.Join(archive.Close(), compressor.Close()); err != nil {
		return fmt.Errorf("writing the bundle: %w", err)
	}
	return nil
}

// encodeObjects encodes objects of one kind as one list.
func encodeObjects(all []client.Object, scheme *runtime.Scheme) ([]byte, error) {
	items := make([]json.RawMessage, 0, len(all))
	for _, o := range all {
		kind, err := apiutil.GVKForObject(o, scheme)
		if err != nil {
			return nil, err
		}
		o.GetObjectKind().SetGroupVersionKind(kind)
		text, err := json.Marshal(o)
		if err != nil {
			return nil, err
		}
		items = append(items, text)
	}
	return json.MarshalIndent(map[string]any{"apiVersion": "v1", "kind": "List", "items": items}, "", " ")
}

// maxArchiveBytes bounds what an archive may have when it is unpacked: an archive may come from
// anybody.
const maxArchiveBytes = 2 << 30

// ReadArchive reads what WriteArchive wrote.
func ReadArchive(r io.Reader, scheme *runtime.Scheme) (*Bundle, error) {
	plain, err := gzip.NewReader(r)
	if err != nil {
		return nil, fmt.Errorf("reading the bundle: %w", err)
	}
	out := &Bundle{objectsByResource: map[string][]client.Object{}, routePageByPod: map[string][]byte{}}
	archive := tar.NewReader(io.LimitReader(plain, maxArchiveBytes))
	decoder := serializer.NewCodecFactory(scheme).UniversalDeserializer()
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("reading the bundle: %w", err)
		}
		text, err := io.ReadAll(archive)
		if err == nil {
			err = out.addFile(header.Name, text, decoder)
		}
		if err != nil {
			return nil, fmt.Errorf("reading %s of the bundle: %w", header.Name, err)
		}
	}
	if v := out.Manifest.FormatVersion; v != formatVersion {
		return nil, fmt.Errorf("this is no bundle of kubectl gantry support-bundle, or one of another version (%d, not %d)", v, formatVersion)
	}
	return out, nil
}

// addFile adds the content of one file of the archive. It ignores files that it does not know.
func (b *Bundle) addFile(name string, text []byte, decoder runtime.Decoder) error {
	directory, file := path.Split(name)
	key, isJSON := strings.CutSuffix(file, ".json")
	switch {
	case name == manifestFile:
		return json.Unmarshal(text, &b.Manifest)
	case strings.TrimSuffix(directory, "/") == routesDirectory && isJSON:
		b.routePageByPod[key] = text
	case strings.TrimSuffix(directory, "/") == objectsDirectory && isJSON:
		var list struct {
			Items []json.RawMessage `json:"items"`
		}
		if err := json.NewDecoder(bytes.NewReader(text)).Decode(&list); err != nil {
			return err
		}
		for _, item := range list.Items {
			decoded, err := runtime.Decode(decoder, item)
			if err != nil {
				return err
			}
			o, ok := decoded.(client.Object)
			if !ok {
				return fmt.Errorf("%T is no object with metadata", decoded)
			}
			b.objectsByResource[key] = append(b.objectsByResource[key], o)
		}
	}
	return nil
}

// Now is the time of the bundle.
func (b *Bundle) Now() time.Time { return b.Manifest.TakenAt.Time }

// FastestAPIAnswerDelay is how long the fastest answer of the API server took.
func (b *Bundle) FastestAPIAnswerDelay() time.Duration {
	return b.Manifest.FastestAPIAnswerDelay.Duration
}

// readingOf returns what was read of a resource; nil if nothing was.
func (b *Bundle) readingOf(resource string) *Reading {
	at := slices.IndexFunc(b.Manifest.Readings, func(r Reading) bool { return r.Resource == resource })
	if at < 0 {
		return nil
	}
	return &b.Manifest.Readings[at]
}

// includes reports whether all objects of the namespace were read; without one, all of all.
func (r *Reading) includes(namespace string) bool {
	return slices.Contains(r.Namespaces, "") || slices.Contains(r.Namespaces, namespace)
}

// resourceOf names the resource of an object or a list as "resource.group".
func resourceOf(o runtime.Object, scheme *runtime.Scheme, mapper meta.RESTMapper) (string, error) {
	kind, err := apiutil.GVKForObject(o, scheme)
	if err != nil {
		return "", err
	}
	kind.Kind = strings.TrimSuffix(kind.Kind, "List")
	mapping, err := mapper.RESTMapping(kind.GroupKind(), kind.Version)
	if err != nil {
		return "", err
	}
	if mapping.Resource.Group == "" {
		return mapping.Resource.Resource, nil
	}
	return mapping.Resource.Resource + "." + mapping.Resource.Group, nil
}
