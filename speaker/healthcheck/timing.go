package healthcheck

import (
	"time"
)

// The times of the health checks of one Service.
const (
	// firstRetryInterval is the time between two requests about a Service at first. A planned move
	// waits for the answer.
	firstRetryInterval = 50 * time.Millisecond
	// quickRetriesTimeout is how long it stays so. Then the interval doubles, up to
	// maxRetryInterval.
	quickRetriesTimeout = 3 * time.Second
	maxRetryInterval    = time.Second
	// neverAnsweredPortTimeout is how long after the first request nothing must have answered
	// before the proxy counts as one that does not answer health checks. A kube-proxy of the usual
	// configuration writes its rules about once a second.
	neverAnsweredPortTimeout = 1200 * time.Millisecond
	// onceAnsweredPortTimeout is the same for a port that has answered before: a proxy may
	// restart.
	onceAnsweredPortTimeout = 30 * time.Second
)

// minCheckStartInterval is the least time between the starts of two health checks. At this rate, a
// speaker that starts with many Services uses a fraction of one CPU for them.
const minCheckStartInterval = 2 * time.Millisecond
