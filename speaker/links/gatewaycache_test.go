package links

import (
	"testing"
	"time"
)

func TestRoutesAreReadSeldomUnlessTheyChange(t *testing.T) {
	for name, tt := range map[string]struct {
		cost            time.Duration // of one reading
		hasEvents       bool          // before each question
		atMost, atLeast int           // readings in ten minutes, with a question each 5 s
	}{
		"nothing happens":                {time.Millisecond, false, 11, 9},
		"something happens all the time": {time.Millisecond, true, 120, 120},
		"the node has a million of them": {3 * time.Second, true, 21, 10},
	} {
		t.Run(name, func(t *testing.T) {
			now, readings := time.Unix(1e9, 0), 0
			c := &gatewayCache{now: func() time.Time { return now }, readDefaultRoutes: func() (defaultGatewaysByLink, error) {
				readings++
				now = now.Add(tt.cost)
				return defaultGatewaysByLink{}, nil
			}}
			for range 120 {
				if tt.hasEvents {
					c.markRoutesChanged()
				}
				if _, err := c.currentGateways(); err != nil {
					t.Fatal(err)
				}
				now = now.Add(periodicLinkReadInterval)
			}
			if readings > tt.atMost || readings < tt.atLeast {
				t.Errorf("the routes were read %d times, want %d to %d", readings, tt.atLeast, tt.atMost)
			}
		})
	}
}

func TestChangeOfRoutesIsReadAlthoughReadingTakesLong(t *testing.T) {
	now, readings := time.Unix(1e9, 0), 0
	c := &gatewayCache{now: func() time.Time { return now }, readDefaultRoutes: func() (defaultGatewaysByLink, error) {
		readings++
		now = now.Add(time.Second)
		return defaultGatewaysByLink{}, nil
	}}
	for _, wait := range []time.Duration{0, time.Second, 10 * time.Second} {
		now = now.Add(wait)
		c.markRoutesChanged()
		if _, err := c.currentGateways(); err != nil {
			t.Fatal(err)
		}
	}
	if readings != 2 {
		t.Errorf("the routes were read %d times, want at the start and 10 s later", readings)
	}
}
