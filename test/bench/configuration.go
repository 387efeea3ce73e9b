package main

import (
	"fmt"
	"math/rand"
	"runtime"
	"slices"
	"time"

	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/internal/snapshot"
)

const (
	configurationPoolEntryCount = 50_000
	// maxBuildToParseTimeRatio is the highest ratio of the time to build the configuration to the
	// time to read its entries once.
	maxBuildToParseTimeRatio = 5
	configurationBuildCount  = 20
)

// measureConfigurationBuildTime measures in processor time how long it takes to build the
// configuration from pools with 50,000 entries in random order. The baseline reads each entry once
// and does nothing else.
func measureConfigurationBuildTime() error {
	runtime.GOMAXPROCS(1)
	defer runtime.GOMAXPROCS(runtime.NumCPU())
	var texts []string
	for i := range configurationPoolEntryCount {
		texts = append(texts, fmt.Sprintf("10.%d.%d.%d/30", i>>14, i>>6&255, i&63<<2))
	}
	rand.New(rand.NewSource(1)).Shuffle(len(texts), func(i, j int) { texts[i], texts[j] = texts[j], texts[i] })
	for _, poolCount := range []int{5, 5000} {
		var o snapshot.ConfigurationObjects
		for entries := range slices.Chunk(texts, configurationPoolEntryCount/poolCount) {
			p := v1beta1.IPAddressPool{Spec: v1beta1.IPAddressPoolSpec{Addresses: entries}}
			p.Name = fmt.Sprintf("p%05d", len(o.Pools))
			o.Pools = append(o.Pools, p)
		}
		o.PreviousSnapshot, _ = snapshot.BuildSnapshot(o)
		var building, reading []time.Duration
		for range configurationBuildCount {
			begun := processorTime()
			if _, problems := snapshot.BuildSnapshot(o); len(problems) > 0 {
				return fmt.Errorf("building the configuration: %s", problems[0].Text)
			}
			built := processorTime()
			if err := parseEachRangeOnce(texts); err != nil {
				return err
			}
			building, reading = append(building, built-begun), append(reading, processorTime()-built)
		}
		a := printMinMedianAndMax(fmt.Sprintf("building %d entries in %d pools, processor time", configurationPoolEntryCount, poolCount), building)
		b := printMinMedianAndMax("baseline: reading the entries once", reading)
		ratio := float64(a) / float64(b)
		fmt.Printf("  ratio of the medians %.2f, at most %d\n", ratio, maxBuildToParseTimeRatio)
		if ratio > maxBuildToParseTimeRatio {
			return fmt.Errorf("building %d entries in %d pools takes %.2f times the time of reading them, more than %d", configurationPoolEntryCount, poolCount, ratio, maxBuildToParseTimeRatio)
		}
	}
	return nil
}

func parseEachRangeOnce(texts []string) error {
	read := make([]snapshot.Range, 0, len(texts))
	for _, text := range texts {
		r, err := snapshot.ParseRange(text)
		if err != nil {
			return err
		}
		read = append(read, r)
	}
	runtime.KeepAlive(read)
	return nil
}
