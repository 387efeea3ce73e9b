package layer2

import (
	"testing"
	"time"
)

func TestSendDeadline(t *testing.T) {
	base := time.Now() // has a monotonic reading
	until := base.Add(time.Second)
	// Round(0) strips the monotonic reading: comparing it with base uses the wall clock alone.
	tests := map[string]struct {
		renew []time.Time
		now   time.Time
		want  bool
	}{
		"closed before the first renewal":      {nil, base, true},
		"open until the end":                   {[]time.Time{until}, base.Add(999 * time.Millisecond), false},
		"closed at the end":                    {[]time.Time{until}, until, true},
		"closed by the zero time":              {[]time.Time{until, {}}, base, true},
		"a later renewal counts":               {[]time.Time{until, until.Add(time.Second)}, until, false},
		"an earlier renewal counts":            {[]time.Time{until.Add(time.Second), until}, until, true},
		"closed when only the wall clock went": {[]time.Time{until}, until.Round(0), true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			f := sendDeadline{reference: base}
			for _, u := range tt.renew {
				f.extendTo(u)
			}
			if got := f.isPast(tt.now); got != tt.want {
				t.Errorf("closed = %v, want %v", got, tt.want)
			}
		})
	}
}
