package healthcheck

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

func TestProxyWatcherReportsWhetherTheProxyWorks(t *testing.T) {
	var status atomic.Int32
	status.Store(http.StatusOK)
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/healthz" {
			t.Errorf("asked for %s", r.URL.Path)
		}
		w.WriteHeader(int(status.Load()))
	}))
	w := NewProxyWatcher(strings.TrimPrefix(proxy.URL, "http://"))
	ctx, stop := context.WithCancel(t.Context())
	var run sync.WaitGroup
	run.Go(func() {
		if err := w.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	awaitAnswer := func(want bool) {
		t.Helper()
		for answer := range w.HealthUpdates() {
			if answer == want {
				return
			}
		}
	}
	awaitAnswer(true)
	status.Store(http.StatusServiceUnavailable)
	awaitAnswer(false)
	status.Store(http.StatusOK)
	awaitAnswer(true)
	proxy.Close()
	awaitAnswer(false)
	stop()
	run.Wait()
}
