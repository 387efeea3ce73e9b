package assign

import "time"

// slowWriteTracker knows which first attempts to write a Service's status get no answer in time. If
// a webhook hangs for the Services of one namespace, these must not keep others waiting: slow
// writes occupy no place, and their namespace begins few others meanwhile.
type slowWriteTracker struct {
	firstAttemptsInFlight map[*serviceStatusWriteTask]struct{}
	// slowCount counts the slow ones of firstAttemptsInFlight, slowCountByNamespace too; it is nil
	// if there are none.
	slowCount            int
	slowCountByNamespace map[string]int
}

// addWrite adds a write that begins, unless it repeats a slow one.
func (s *slowWriteTracker) addWrite(w *serviceStatusWriteTask) {
	if w.isSlowRetry {
		return
	}
	if s.firstAttemptsInFlight == nil {
		s.firstAttemptsInFlight = map[*serviceStatusWriteTask]struct{}{}
	}
	s.firstAttemptsInFlight[w] = struct{}{}
}

// updateSlowWrites updates which writes are slow.
func (s *slowWriteTracker) updateSlowWrites(now time.Time) {
	s.slowCount, s.slowCountByNamespace = 0, nil
	for w := range s.firstAttemptsInFlight {
		if now.Sub(w.attemptStart) < slowAttemptTimeout {
			continue
		}
		if s.slowCountByNamespace == nil {
			s.slowCountByNamespace = map[string]int{}
		}
		s.slowCountByNamespace[w.service.Key.Namespace]++
		s.slowCount++
	}
}

// countSlowWrites returns how many slow writes occupy no place.
func (s *slowWriteTracker) countSlowWrites() int { return min(s.slowCount, maxSlowWritesInFlight) }

// isNamespaceSlow says whether so many writes of the namespace are slow that it begins no others.
func (s *slowWriteTracker) isNamespaceSlow(namespace string) bool {
	return s.slowCountByNamespace[namespace] >= maxSlowWritesPerNamespace
}

// nextSlowTime returns when the next write becomes slow; zero if none is in flight.
func (s *slowWriteTracker) nextSlowTime(now time.Time) time.Time {
	var next time.Time
	for w := range s.firstAttemptsInFlight {
		if due := w.attemptStart.Add(slowAttemptTimeout); due.After(now) && (next.IsZero() || due.Before(next)) {
			next = due
		}
	}
	return next
}
