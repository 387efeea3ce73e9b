// Package metricsaccess serves the metrics of a program to those who may read them. It serves them
// by HTTPS, and asks the API server whose token a request has, and whether this user may get
// /metrics. It remembers the answers for a short time, so that a scrape rarely waits for the API
// server. By choice it serves the metrics by plain HTTP to everybody. The filter of
// controller-runtime does the same, but its packages need 20 MB of memory.
package metricsaccess

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/time/rate"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	authenticationclient "k8s.io/client-go/kubernetes/typed/authentication/v1"
	authorizationclient "k8s.io/client-go/kubernetes/typed/authorization/v1"
	"k8s.io/client-go/rest"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/gantry-lb/gantry/internal/option"
)

const (
	// admittedAnswerTimeout and refusedAnswerTimeout are how long an answer of the API server
	// counts. So a right that is taken away ends within a minute, and a new one counts soon.
	admittedAnswerTimeout = time.Minute
	refusedAnswerTimeout  = 10 * time.Second
	// unconfirmedAnswerTimeout is how long somebody who was admitted stays so while the API server
	// does not answer: metrics are needed most in an outage.
	unconfirmedAnswerTimeout = 10 * time.Minute
	// reviewTimeout bounds the questions about one request. Prometheus waits 10 s by default.
	reviewTimeout = 5 * time.Second
	// reviewsPerSecondLimit and reviewBurstLimit bound the questions to the API server, whoever
	// sends tokens that do not exist. They also bound those about tokens that were admitted, which
	// are counted apart: a flood of others must not delay a scrape.
	reviewsPerSecondLimit = 5
	reviewBurstLimit      = 20
	// rememberedAnswerLimit bounds the memory for answers.
	rememberedAnswerLimit = 128
)

// metricsPath is the path that a user must have the right to get.
const metricsPath = "/metrics"

// BuildServerOptions returns how a manager serves its metrics: to those who may get them, or to
// everybody.
func BuildServerOptions(common option.CommonOptions, log *slog.Logger) (metricsserver.Options, error) {
	return buildServerOptions(common, time.Now, log)
}

func buildServerOptions(common option.CommonOptions, clock func() time.Time, log *slog.Logger) (metricsserver.Options, error) {
	o := metricsserver.Options{BindAddress: common.MetricsBindAddress}
	if common.MetricsProtocol == option.MetricsProtocolHTTP || common.MetricsBindAddress == option.ListenAddressDisabledValue {
		return o, nil
	}
	selfSigned, err := newSelfSignedCertificate(clock)
	if err != nil {
		return o, fmt.Errorf("creating the certificate of the metrics: %w", err)
	}
	getCertificate := func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return selfSigned, nil }
	if common.MetricsCertificateDir != "" {
		getCertificate = openCertificateFiles(common.MetricsCertificateDir, selfSigned, clock, log).currentCertificate
	}
	o.SecureServing, o.TLSOpts = true, append(o.TLSOpts, serveCertificate(getCertificate))
	o.FilterProvider = func(config *rest.Config, c *http.Client) (metricsserver.Filter, error) {
		ask, err := newAPIServerReview(config, c)
		if err != nil {
			return nil, err
		}
		g := newGate(ask, clock, log)
		return func(_ logr.Logger, metrics http.Handler) (http.Handler, error) { return g.guard(metrics), nil }, nil
	}
	return o, nil
}

// access is what the API server says about a token.
type access struct {
	userName  string // empty if the token is nobody's
	mayGet    bool
	decidedAt time.Time
}

// reviewFunc asks the API server about a token.
type reviewFunc func(ctx context.Context, token string) (access, error)

// newAPIServerReview returns a function that asks the API server.
func newAPIServerReview(config *rest.Config, c *http.Client) (reviewFunc, error) {
	tokens, err := authenticationclient.NewForConfigAndClient(config, c)
	if err != nil {
		return nil, fmt.Errorf("creating a client for TokenReviews: %w", err)
	}
	rights, err := authorizationclient.NewForConfigAndClient(config, c)
	if err != nil {
		return nil, fmt.Errorf("creating a client for SubjectAccessReviews: %w", err)
	}
	return func(ctx context.Context, token string) (access, error) {
		review := &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token}}
		review, err := tokens.TokenReviews().Create(ctx, review, metav1.CreateOptions{})
		if err != nil {
			return access{}, fmt.Errorf("asking whose token it is: %w", err)
		}
		if !review.Status.Authenticated {
			return access{}, nil
		}
		user := review.Status.User
		question := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
			User: user.Username, UID: user.UID, Groups: user.Groups, Extra: map[string]authorizationv1.ExtraValue{},
			NonResourceAttributes: &authorizationv1.NonResourceAttributes{Path: metricsPath, Verb: "get"},
		}}
		for k, v := range user.Extra {
			question.Spec.Extra[k] = authorizationv1.ExtraValue(v)
		}
		answer, err := rights.SubjectAccessReviews().Create(ctx, question, metav1.CreateOptions{})
		if err != nil {
			return access{}, fmt.Errorf("asking whether %s may get %s: %w", user.Username, metricsPath, err)
		}
		return access{userName: user.Username, mayGet: answer.Status.Allowed}, nil
	}, nil
}

// gate admits requests by their tokens.
type gate struct {
	ask     reviewFunc
	now     func() time.Time
	limiter *rate.Limiter
	// renewalLimiter is for tokens that were admitted.
	renewalLimiter *rate.Limiter
	log            *slog.Logger

	mu             sync.Mutex // guards what follows
	answerByDigest map[[sha256.Size]byte]access
}

func newGate(ask reviewFunc, now func() time.Time, log *slog.Logger) *gate {
	newLimiter := func() *rate.Limiter { return rate.NewLimiter(reviewsPerSecondLimit, reviewBurstLimit) }
	return &gate{ask: ask, now: now, limiter: newLimiter(), renewalLimiter: newLimiter(), log: log, answerByDigest: map[[sha256.Size]byte]access{}}
}

// guard returns a handler that passes the requests of those who may get the metrics.
func (g *gate) guard(metrics http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		if !ok || token == "" {
			http.Error(w, "send a token: Authorization: Bearer TOKEN", http.StatusUnauthorized)
			return
		}
		a, err := g.reviewToken(r.Context(), token)
		switch {
		case err != nil:
			g.log.Debug("the API server does not say who may get the metrics", "error", err)
			http.Error(w, "the API server does not say who may get the metrics; try again later", http.StatusServiceUnavailable)
		case a.userName == "":
			http.Error(w, "the token is not valid in this cluster", http.StatusUnauthorized)
		case !a.mayGet:
			http.Error(w, fmt.Sprintf("%s may not get %s: bind the user to the ClusterRole gantry-metrics-reader", a.userName, metricsPath), http.StatusForbidden)
		default:
			metrics.ServeHTTP(w, r)
		}
	})
}

// reviewToken returns the remembered answer about a token, or asks the API server.
func (g *gate) reviewToken(ctx context.Context, token string) (access, error) {
	digest := sha256.Sum256([]byte(token))
	g.mu.Lock()
	last, isKnown := g.answerByDigest[digest]
	g.mu.Unlock()
	if isKnown && g.now().Sub(last.decidedAt) < last.timeout() {
		return last, nil
	}
	mayStay := last.mayGet && g.now().Sub(last.decidedAt) < unconfirmedAnswerTimeout
	if mayStay && !g.renewalLimiter.Allow() {
		return last, nil
	}
	ctx, cancel := context.WithTimeout(ctx, reviewTimeout)
	defer cancel()
	if !mayStay {
		if err := g.limiter.Wait(ctx); err != nil {
			return access{}, err
		}
	}
	a, err := g.ask(ctx, token)
	if err != nil {
		if mayStay {
			return last, nil
		}
		return access{}, err
	}
	a.decidedAt = g.now()
	g.remember(digest, a)
	return a, nil
}

// timeout is how long the answer counts.
func (a access) timeout() time.Duration {
	if a.mayGet {
		return admittedAnswerTimeout
	}
	return refusedAnswerTimeout
}

// remember keeps an answer. If there are too many, it forgets the oldest refusal, or else the
// oldest answer: tokens that do not exist must not displace that of Prometheus.
func (g *gate) remember(digest [sha256.Size]byte, a access) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.answerByDigest[digest] = a
	if len(g.answerByDigest) <= rememberedAnswerLimit {
		return
	}
	var oldest [sha256.Size]byte
	found := false
	for d, other := range g.answerByDigest {
		o := g.answerByDigest[oldest]
		if !found || other.mayGet != o.mayGet && o.mayGet || other.mayGet == o.mayGet && other.decidedAt.Before(o.decidedAt) {
			oldest, found = d, true
		}
	}
	delete(g.answerByDigest, oldest)
}
