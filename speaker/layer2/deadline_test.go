package layer2

import (
	"testing"
	"time"
)

func TestSendDeadlineUsesTheEarlierOfTwoClocks(t *testing.T) {
	base := time.Now() // has a monotonic reading
	until := base.Add(time.Second)
	// Round(0) strips the monotonic reading, so that a comparison with base uses the wall clock.
	tests := map[string]struct {
		renew []time.Time
		now   time.Time
		want  bool
	}{
		"past before it is set":                  {nil, base, true},
		"not past before the deadline":           {[]time.Time{until}, base.Add(999 * time.Millisecond), false},
		"past at the deadline":                   {[]time.Time{until}, until, true},
		"past after the zero time":               {[]time.Time{until, {}}, base, true},
		"a later deadline replaces it":           {[]time.Time{until, until.Add(time.Second)}, until, false},
		"an earlier deadline replaces it":        {[]time.Time{until.Add(time.Second), until}, until, true},
		"past when only the wall clock advanced": {[]time.Time{until}, until.Round(0), true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			f := sendDeadline{referenceTime: base}
			for _, u := range tt.renew {
				f.setDeadline(u)
			}
			if got := f.isPast(tt.now); got != tt.want {
				t.Errorf("isPast = %v, want %v", got, tt.want)
			}
		})
	}
}
