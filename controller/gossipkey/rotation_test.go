package gossipkey

import (
	"bytes"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/gantry-lb/gantry/api/names"
)

var testStartTime = time.Unix(1e9, 0)

func TestNoSpeakerGetsMessagesWithUnknownKey(t *testing.T) {
	s := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{names.AnnotationRotateGossipKey: ""}},
		Data:       map[string][]byte{names.GossipKeySecretEntry: []byte("the first key")},
	}
	// Two speakers: one follows each step at once, the other one a step later.
	accepts := func(s *corev1.Secret, key []byte) bool {
		for _, k := range s.Data {
			if bytes.Equal(k, key) {
				return true
			}
		}
		return false
	}
	steps := 0
	for at := time.Duration(0); at < time.Hour; at += rotationCheckInterval {
		before := s.DeepCopy()
		if applyDueRotationStep(s, fmt.Appendf(nil, "a new key of step %d", steps), 0, testStartTime.Add(at)) == "" {
			continue
		}
		steps++
		if !accepts(before, s.Data[names.GossipKeySecretEntry]) || !accepts(s, before.Data[names.GossipKeySecretEntry]) {
			t.Errorf("step %d leads from %q to %q", steps, before.Data, s.Data)
		}
	}
	if _, isRequested := s.Annotations[names.AnnotationRotateGossipKey]; steps != 3 || len(s.Data) != 1 || isRequested || string(s.Data[names.GossipKeySecretEntry]) != "a new key of step 0" {
		t.Errorf("after %d steps the Secret has %q and %q", steps, s.Data, s.Annotations)
	}
}

func TestKeyIsRotatedPeriodically(t *testing.T) {
	s := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{CreationTimestamp: metav1.NewTime(testStartTime)},
		Data:       map[string][]byte{names.GossipKeySecretEntry: []byte("the first key")},
	}
	steps := 0
	for at := time.Duration(0); at < 25*time.Hour; at += rotationCheckInterval {
		if applyDueRotationStep(s, []byte("a new key"), 12*time.Hour, testStartTime.Add(at)) != "" {
			steps++
		}
	}
	if steps != 6 {
		t.Errorf("%d steps in 25 hours with an interval of 12 hours, want 6", steps)
	}
	if step := applyDueRotationStep(s, nil, 0, testStartTime.Add(1000*time.Hour)); step != "" {
		t.Errorf("without an interval and a request: %s", step)
	}
}

func TestRequestedRotationFirstAddsTheNextKey(t *testing.T) {
	c := fake.NewClientBuilder().Build()
	k := NewKeyRotator(Options{Client: c, LiveReader: c, Log: slog.New(slog.DiscardHandler), Namespace: names.DefaultNamespace, Now: func() time.Time { return testStartTime }})
	if err := k.ensureSecretExists(t.Context()); err != nil {
		t.Fatal(err)
	}
	read := func() *corev1.Secret {
		var s corev1.Secret
		if err := c.Get(t.Context(), client.ObjectKey{Namespace: names.DefaultNamespace, Name: names.GossipSecret}, &s); err != nil {
			t.Fatal(err)
		}
		return &s
	}
	s := read()
	s.Annotations = map[string]string{names.AnnotationRotateGossipKey: "now"}
	if err := c.Update(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second step is not due
		if err := k.advanceRotation(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if now := read(); len(now.Data[names.GossipNextKeySecretEntry]) != 32 || !bytes.Equal(now.Data[names.GossipKeySecretEntry], s.Data[names.GossipKeySecretEntry]) {
		t.Errorf("the Secret has %q", now.Data)
	}
}

// TestMetricSaysWhenTheKeyChanged: an alert needs the age of the key.
func TestMetricSaysWhenTheKeyChanged(t *testing.T) {
	s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: names.DefaultNamespace, Name: names.GossipSecret, CreationTimestamp: metav1.NewTime(testStartTime)}}
	c := fake.NewClientBuilder().WithObjects(s).Build()
	k := NewKeyRotator(Options{Client: c, LiveReader: c, Log: slog.New(slog.DiscardHandler), Namespace: names.DefaultNamespace, Now: func() time.Time { return testStartTime }})
	if n := testutil.CollectAndCount(k); n != 0 {
		t.Errorf("%d metrics before the Secret was read", n)
	}
	if err := k.advanceRotation(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := testutil.ToFloat64(k); got != float64(testStartTime.Unix()) {
		t.Errorf("the key changed at %v, want %v", got, testStartTime.Unix())
	}
}
