package flood

import (
	"errors"
	"os"
	"testing"
	"time"

	"github.com/gantry-lb/gantry/internal/ipfamily"
)

// TestEveryQueryIsAnswered sends 50,000 queries per second for 10,000 addresses.
func TestEveryQueryIsAnswered(t *testing.T) {
	for _, f := range []ipfamily.Family{ipfamily.IPv4, ipfamily.IPv6} {
		t.Run(f.String(), func(t *testing.T) {
			c, err := NewHarness(Options{QueriedAddressFamily: f, QueriedAddressCount: 10000, QueriesPerSecond: 50000, Duration: time.Second})
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
			o, err := c.SendQueriesAndMeasureAnswers(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if o.FramesDroppedByQuerier > 0 {
				t.Skipf("this machine is too busy: the querying side dropped %d answers", o.FramesDroppedByQuerier)
			}
			if o.SentQueryCount != 50000 || o.AnsweredQueryCount != o.SentQueryCount {
				t.Fatalf("%d of %d queries were answered", o.AnsweredQueryCount, o.SentQueryCount)
			}
		})
	}
}
