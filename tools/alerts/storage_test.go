package alerts

import (
	"slices"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/util/annotations"
)

// sample is a value at a time.
type sample struct {
	milliseconds int64
	value        float64
}

var _ chunks.Sample = sample{}

func (s sample) T() int64                    { return s.milliseconds }
func (sample) ST() int64                     { return 0 }
func (s sample) F() float64                  { return s.value }
func (sample) H() *histogram.Histogram       { return nil }
func (sample) FH() *histogram.FloatHistogram { return nil }
func (sample) Type() chunkenc.ValueType      { return chunkenc.ValFloat }
func (s sample) Copy() chunks.Sample         { return s }

// seriesSet is a list of series. at is one more than the index of the current one.
type seriesSet struct {
	series []storage.Series
	at     int
}

var _ storage.SeriesSet = (*seriesSet)(nil)

func (s *seriesSet) Next() bool {
	s.at++
	return s.at <= len(s.series)
}

func (s *seriesSet) At() storage.Series              { return s.series[s.at-1] }
func (*seriesSet) Err() error                        { return nil }
func (*seriesSet) Warnings() annotations.Annotations { return nil }

// newStorage returns a storage in memory with series in the notation of promtool's tests.
func newStorage(t *testing.T, descriptions []string, interval time.Duration) storage.Queryable {
	t.Helper()
	var all []storage.Series
	for _, d := range descriptions {
		lset, values, err := parser.NewParser(parser.Options{}).ParseSeriesDesc(d)
		if err != nil {
			t.Fatal(err)
		}
		var samples []chunks.Sample
		for i, v := range values {
			if !v.Omitted {
				samples = append(samples, sample{int64(i) * interval.Milliseconds(), v.Value})
			}
		}
		all = append(all, storage.NewListSeries(lset, samples))
	}
	selectSeries := func(_ bool, _ *storage.SelectHints, matchers ...*labels.Matcher) storage.SeriesSet {
		chosen := slices.DeleteFunc(slices.Clone(all), func(s storage.Series) bool {
			return slices.ContainsFunc(matchers, func(m *labels.Matcher) bool { return !m.Matches(s.Labels().Get(m.Name)) })
		})
		slices.SortFunc(chosen, func(a, b storage.Series) int { return labels.Compare(a.Labels(), b.Labels()) })
		return &seriesSet{series: chosen}
	}
	return &storage.MockQueryable{MockQuerier: &storage.MockQuerier{SelectMockFunction: selectSeries}}
}
