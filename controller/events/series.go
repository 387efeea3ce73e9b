package events

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/api/names"
)

// SeriesRecorder creates events about Services. It writes an event that it repeats as a series of
// one object, however long the time between two of them is. Use NewSeriesRecorder to create it.
type SeriesRecorder struct {
	options           SeriesRecorderOptions
	reportingInstance string
}

// SeriesRecorderOptions are what a SeriesRecorder needs.
type SeriesRecorderOptions struct {
	// LiveReader reads without a cache: nobody should watch all events of a cluster.
	LiveReader client.Reader
	Client     client.Client
	Log        *slog.Logger
	Now        func() time.Time
}

// NewSeriesRecorder returns a SeriesRecorder.
func NewSeriesRecorder(o SeriesRecorderOptions) *SeriesRecorder {
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = names.ControllerEventSource
	}
	return &SeriesRecorder{options: o, reportingInstance: host}
}

// RecordSeriesEvent creates an event about a Service, or counts it once more if it exists. kind is
// Normal or Warning. An error is logged: the condition of the Service says the same. It reports
// whether the API server has taken the event.
func (r *SeriesRecorder) RecordSeriesEvent(ctx context.Context, about *corev1.Service, kind, reason, text string) bool {
	err := r.createOrCountEvent(ctx, about, kind, reason, text)
	if err != nil && ctx.Err() == nil {
		r.options.Log.Info("an event was not written", "service", about.Namespace+"/"+about.Name, "error", err)
	}
	return err == nil
}

func (r *SeriesRecorder) createOrCountEvent(ctx context.Context, about *corev1.Service, kind, reason, text string) error {
	now := metav1.NewMicroTime(r.options.Now())
	key := client.ObjectKey{Namespace: about.Namespace, Name: eventNameOfSeries(about, kind, reason, text)}
	e := &eventsv1.Event{
		ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name},
		EventTime:  now, ReportingController: names.ControllerEventSource, ReportingInstance: r.reportingInstance,
		Action: actionForText(text), Reason: reason, Type: kind, Note: text,
		Regarding: corev1.ObjectReference{APIVersion: "v1", Kind: "Service", Namespace: about.Namespace, Name: about.Name, UID: about.UID},
	}
	err := r.options.Client.Create(ctx, e)
	if !apierrors.IsAlreadyExists(err) {
		return err
	}
	if err := r.options.LiveReader.Get(ctx, key, e); err != nil {
		return fmt.Errorf("reading the event %s: %w", key, err)
	}
	base := client.MergeFrom(e.DeepCopy())
	if e.Series == nil {
		e.Series = &eventsv1.EventSeries{Count: 1}
	}
	e.Series.Count, e.Series.LastObservedTime = e.Series.Count+1, now
	return r.options.Client.Patch(ctx, e, base)
}

// eventNameOfSeries returns the name of the event. It is the same for equal events about one
// Service.
func eventNameOfSeries(about *corev1.Service, kind, reason, text string) string {
	sum := sha256.Sum256([]byte(fmt.Sprintf("%s/%s/%s/%s", about.UID, kind, reason, text)))
	return about.Name + "." + hex.EncodeToString(sum[:8])
}
