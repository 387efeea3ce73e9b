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
			c, err := NewHarness(Options{Family: f, AddressCount: 10000, QueriesPerSecond: 50000, Duration: time.Second})
			if errors.Is(err, os.ErrPermission) {
				t.Skipf("root is needed to create a network namespace: %v", err)
			}
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			stop, err := c.StartResponder(t.Context())
			defer stop()
			if err != nil {
				t.Fatal(err)
			}
			o, err := c.SendQueries(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if o.DroppedFrames > 0 {
				t.Skipf("this machine is too busy: the querying side dropped %d answers", o.DroppedFrames)
			}
			if o.SentCount != 50000 || o.AnsweredCount != o.SentCount {
				t.Fatalf("%d of %d queries were answered", o.AnsweredCount, o.SentCount)
			}
		})
	}
}
