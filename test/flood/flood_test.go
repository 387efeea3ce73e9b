package flood

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/internal/ipfamily"
)

// maxOpenQueries is fewer than a port holds while the process waits for a processor, and fewer than
// there are addresses. So a busy machine makes the queries slower, and loses none.
const maxOpenQueries = 4000

// TestEveryARPAndNDPQueryOfFloodIsAnswered sends 50,000 queries for 10,000 addresses, in one second
// if the machine is not busy.
func TestEveryARPAndNDPQueryOfFloodIsAnswered(t *testing.T) {
	for _, f := range []ipfamily.Family{ipfamily.IPv4, ipfamily.IPv6} {
		t.Run(f.String(), func(t *testing.T) {
			c, err := NewCabledNamespacePair(Options{QueriedAddressFamily: f, QueriedAddressCount: 10000, QueriesPerSecond: 50000, Duration: time.Second, MaxOpenQueries: maxOpenQueries})
			if errors.Is(err, os.ErrPermission) {
				t.Skipf("root is needed to create a network namespace: %v", err)
			}
			if err != nil {
				t.Fatal(err)
			}
			defer c.DeleteNamespaces()
			stop, err := c.StartLayer2EngineForAddresses(t.Context())
			defer stop()
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			begun := time.Now()
			o, err := c.SendQueriesAndMeasureAnswers(ctx)
			if err != nil {
				t.Fatalf("%d of %d queries were answered: %v", o.AnsweredQueryCount, o.SentQueryCount, err)
			}
			t.Logf("%d queries in %s", o.SentQueryCount, time.Since(begun).Round(time.Millisecond))
			if o.FramesDroppedByQuerier > 0 {
				t.Skipf("this machine is too busy: the querying side dropped %d answers", o.FramesDroppedByQuerier)
			}
			if o.SentQueryCount != 50000 || o.AnsweredQueryCount != o.SentQueryCount {
				t.Fatalf("%d of %d queries were answered", o.AnsweredQueryCount, o.SentQueryCount)
			}
		})
	}
}
