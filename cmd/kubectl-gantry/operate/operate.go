// Package operate makes the changes of an operator: it sets the annotations and fields that the
// documents name, with the rights of the user, and reads how far Gantry has carried them out. It
// decides nothing about addresses and nodes itself.
package operate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Operation is a change of objects, and how to see that it is carried out.
type Operation struct {
	// Title says what is done: "draining worker-1".
	Title   string
	Changes []ObjectChange
	// ReadProgress says how far Gantry is.
	ReadProgress func(context.Context) (Progress, error)
}

// ObjectChange is the change of an object that exists.
type ObjectChange struct {
	Object client.Object
	Change func(client.Object)
}

// Progress says how far an Operation is.
type Progress struct {
	// IsDone says that Gantry does nothing more for it.
	IsDone bool `json:"isDone"`
	// Text is what is so now, in one sentence.
	Text string `json:"text"`
	// Left are the things that are not as the operator wants them, each with its cause.
	Left []string `json:"left,omitempty"`
}

// Operator makes Operations in one cluster.
type Operator struct {
	API client.Client
	// GantryNamespace has the objects of Gantry.
	GantryNamespace string
}

// ApplyChanges makes the changes. An object that was changed meanwhile is an error: the answer of
// the dry run was about another one.
func (o *Operator) ApplyChanges(ctx context.Context, op *Operation) error {
	for _, c := range op.Changes {
		changed, ok := c.Object.DeepCopyObject().(client.Object)
		if !ok {
			return fmt.Errorf("%T is no object with metadata", c.Object)
		}
		c.Change(changed)
		if err := o.API.Patch(ctx, changed, client.MergeFromWithOptions(c.Object, client.MergeFromWithOptimisticLock{})); err != nil {
			return fmt.Errorf("changing %s: %w", c.Object.GetName(), err)
		}
	}
	return nil
}

const (
	// progressReadInterval is the time between two looks at the progress.
	progressReadInterval = time.Second
	// readingsUntilDone is how often in a row an Operation is done before the waiting ends: the
	// conditions of Services follow the speakers within two seconds.
	readingsUntilDone = 3
)

// AwaitDone reads the progress until the Operation is done, or until the timeout. It calls show
// with each text that differs from the one before, and returns the last progress that it could
// read. The error is that of the last reading: one that may pass is tried again until the timeout.
func (op *Operation) AwaitDone(ctx context.Context, timeout time.Duration, show func(string)) (Progress, error) {
	awaiting, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var last Progress
	shown, doneCount := "", 0
	for {
		p, err := op.ReadProgress(ctx)
		switch {
		case err == nil:
			last = p
		case ctx.Err() != nil || !mayPass(err):
			return last, err
		}
		if last.Text != shown {
			shown = last.Text
			show(shown)
		}
		if doneCount++; err != nil || !last.IsDone {
			doneCount = 0
		}
		if doneCount >= readingsUntilDone {
			return last, nil
		}
		select {
		case <-awaiting.Done():
			return last, cmp.Or(ctx.Err(), err)
		case <-time.After(progressReadInterval):
		}
	}
}

// mayPass reports whether a reading that failed may succeed soon: the API server restarts, or has
// too much to do.
func mayPass(err error) bool {
	var answered apierrors.APIStatus
	if errors.As(err, &answered) {
		code := answered.Status().Code
		return code == http.StatusTooManyRequests || code >= http.StatusInternalServerError
	}
	var failed net.Error
	return errors.As(err, &failed) && failed.Timeout() || utilnet.IsConnectionRefused(err) || utilnet.IsConnectionReset(err) || utilnet.IsProbableEOF(err)
}

// setAnnotation returns a change that sets an annotation.
func setAnnotation(key, value string) func(client.Object) {
	return func(o client.Object) {
		annotations := map[string]string{key: value}
		for k, v := range o.GetAnnotations() {
			if k != key {
				annotations[k] = v
			}
		}
		o.SetAnnotations(annotations)
	}
}

// removeAnnotation returns a change that removes an annotation.
func removeAnnotation(key string) func(client.Object) {
	return func(o client.Object) {
		annotations := map[string]string{}
		for k, v := range o.GetAnnotations() {
			if k != key {
				annotations[k] = v
			}
		}
		o.SetAnnotations(annotations)
	}
}
