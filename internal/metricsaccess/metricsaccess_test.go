package metricsaccess

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// gateHarness is a gate in front of the metrics, with an API server that the test controls.
type gateHarness struct {
	*testing.T
	now           time.Time
	isAPIDown     bool
	questions     int
	accessByToken map[string]access
	gate          *gate
}

func newGateHarness(t *testing.T) *gateHarness {
	h := &gateHarness{T: t, now: time.Unix(1_700_000_000, 0), accessByToken: map[string]access{
		"prometheus": {userName: "system:serviceaccount:monitoring:prometheus", mayGet: true}, "tenant": {userName: "tenant"},
	}}
	h.gate = newGate(func(_ context.Context, token string) (access, error) {
		if h.questions++; h.isAPIDown {
			return access{}, errors.New("the API server does not answer")
		}
		return h.accessByToken[token], nil
	}, func() time.Time { return h.now }, slog.New(slog.DiscardHandler))
	return h
}

// checkGet gets the metrics with the value of the header Authorization, and checks the answer.
func (h *gateHarness) checkGet(authorization string, wantCode, wantQuestions int) {
	h.Helper()
	w := httptest.NewRecorder()
	r := httptest.NewRequest(http.MethodGet, metricsPath, nil)
	r.Header.Set("Authorization", authorization)
	h.gate.guard(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "the metrics") })).ServeHTTP(w, r)
	if w.Code != wantCode || (w.Body.String() == "the metrics") != (wantCode == http.StatusOK) {
		h.Errorf("%q: got %d %q, want %d", authorization, w.Code, w.Body.String(), wantCode)
	}
	if h.questions != wantQuestions {
		h.Errorf("%q: the API server was asked %d times, want %d", authorization, h.questions, wantQuestions)
	}
}

func TestMetricsAreForThoseWhoMayGetThem(t *testing.T) {
	h := newGateHarness(t)
	h.checkGet("", http.StatusUnauthorized, 0)
	h.checkGet("Basic cHJvbWV0aGV1cw==", http.StatusUnauthorized, 0)
	h.checkGet("Bearer ", http.StatusUnauthorized, 0)
	h.checkGet("Bearer forged", http.StatusUnauthorized, 1)
	h.checkGet("Bearer tenant", http.StatusForbidden, 2)
	h.checkGet("Bearer prometheus", http.StatusOK, 3)
}

// A right that is taken away ends within a minute, and a new one counts within 10 s.
func TestAnswersAboutTokensAreRememberedForAShortTime(t *testing.T) {
	h := newGateHarness(t)
	h.checkGet("Bearer prometheus", http.StatusOK, 1)
	h.checkGet("Bearer tenant", http.StatusForbidden, 2)
	h.accessByToken["prometheus"], h.accessByToken["tenant"] = h.accessByToken["tenant"], h.accessByToken["prometheus"]
	h.now = h.now.Add(9 * time.Second)
	h.checkGet("Bearer tenant", http.StatusForbidden, 2)
	h.now = h.now.Add(2 * time.Second)
	h.checkGet("Bearer tenant", http.StatusOK, 3)
	h.now = h.now.Add(48 * time.Second)
	h.checkGet("Bearer prometheus", http.StatusOK, 3)
	h.now = h.now.Add(2 * time.Second)
	h.checkGet("Bearer prometheus", http.StatusForbidden, 4)
}

// Metrics are needed most while the API server does not answer.
func TestKnownReadersAreAdmittedWhileTheAPIServerIsDown(t *testing.T) {
	h := newGateHarness(t)
	h.checkGet("Bearer prometheus", http.StatusOK, 1)
	h.checkGet("Bearer tenant", http.StatusForbidden, 2)
	h.isAPIDown, h.now = true, h.now.Add(2*time.Minute)
	h.checkGet("Bearer prometheus", http.StatusOK, 3)
	h.checkGet("Bearer tenant", http.StatusServiceUnavailable, 4)
	h.checkGet("Bearer unknown", http.StatusServiceUnavailable, 5)
	h.now = h.now.Add(10 * time.Minute)
	h.checkGet("Bearer prometheus", http.StatusServiceUnavailable, 6)
}

// Who sends many tokens that do not exist neither fills the memory nor keeps a reader out.
func TestForgedTokensDoNotDisplaceReaders(t *testing.T) {
	h := newGateHarness(t)
	h.gate.limiter.SetLimit(1e9)
	h.checkGet("Bearer prometheus", http.StatusOK, 1)
	for i := range 3 * rememberedAnswerLimit {
		h.now = h.now.Add(time.Millisecond)
		h.checkGet(fmt.Sprint("Bearer ", i), http.StatusUnauthorized, i+2)
	}
	if n := len(h.gate.answerByDigest); n > rememberedAnswerLimit {
		t.Errorf("%d answers are remembered, want at most %d", n, rememberedAnswerLimit)
	}
	h.checkGet("Bearer prometheus", http.StatusOK, 3*rememberedAnswerLimit+1)
}

// A flood of tokens reaches the API server slowly. A reader who was admitted does not wait for it,
// and stays a reader no longer than without it.
func TestFloodOfTokensDoesNotReachTheAPIServer(t *testing.T) {
	h := newGateHarness(t)
	h.checkGet("Bearer prometheus", http.StatusOK, 1)
	h.gate.limiter.SetLimit(1e-9)
	for i := range reviewBurstLimit - 1 {
		h.checkGet(fmt.Sprint("Bearer ", i), http.StatusUnauthorized, i+2)
	}
	h.checkGet("Bearer one-more", http.StatusServiceUnavailable, reviewBurstLimit)
	h.now = h.now.Add(2 * time.Minute)
	h.checkGet("Bearer prometheus", http.StatusOK, reviewBurstLimit+1)
	h.accessByToken["prometheus"] = h.accessByToken["tenant"]
	h.now = h.now.Add(2 * time.Minute)
	h.checkGet("Bearer prometheus", http.StatusForbidden, reviewBurstLimit+2)
}

// While the API server is down, a reader who asks very often asks it slowly, and gets the metrics.
func TestReaderWithManyRequestsDoesNotReachTheAPIServer(t *testing.T) {
	h := newGateHarness(t)
	h.checkGet("Bearer prometheus", http.StatusOK, 1)
	h.gate.renewalLimiter.SetLimit(1e-9)
	h.isAPIDown, h.now = true, h.now.Add(2*time.Minute)
	for i := range reviewBurstLimit {
		h.checkGet("Bearer prometheus", http.StatusOK, i+2)
	}
	h.checkGet("Bearer prometheus", http.StatusOK, reviewBurstLimit+1)
}
