package view

import (
	"fmt"
	"slices"
	"strings"
	"unicode"

	corev1 "k8s.io/api/core/v1"

	"github.com/gantry-lb/gantry/api/names"
)

// userWrittenServiceAnnotations are the annotations of a Service that its owner writes.
var userWrittenServiceAnnotations = []string{
	names.AnnotationRequestedPool, names.AnnotationLoadBalancerIPs, names.AnnotationSharingKey, names.AnnotationAddressesPerFamily, names.AnnotationAddressesToExchange, names.AnnotationRequestedHolder,
}

// knownServiceAnnotations are all annotations of a Service in our domains. The last one was written
// by versions of the metallb.io API before that group had its name.
var knownServiceAnnotations = append([]string{
	names.AnnotationRequestedPoolOld, names.AnnotationLoadBalancerIPsOld, names.AnnotationSharingKeyOld,
	names.AnnotationAllocatedFromPool, names.AnnotationAllocatedFromSeveralPools, parseAnnotationDomain(names.AnnotationRequestedPoolOld) + "/ip-allocated-from-pool",
}, userWrittenServiceAnnotations...)

// ServiceAnnotationDomains are the domains of the annotations that have a meaning here.
var ServiceAnnotationDomains = []string{parseAnnotationDomain(names.AnnotationRequestedPool), parseAnnotationDomain(names.AnnotationRequestedPoolOld), parseAnnotationDomain(names.AnnotationAddressesToExchange)}

// parseAnnotationDomain is the part before the slash.
func parseAnnotationDomain(key string) string {
	d, _, _ := strings.Cut(key, "/")
	return d
}

// maxReportedUnknownAnnotations bounds how many unknown annotations are named.
const maxReportedUnknownAnnotations = 3

// isSimilarToOurDomain reports whether a domain is one of ours, or differs from one in one letter
// or in the order of the letters. The domain metal3.io differs in two, and is another project's.
func isSimilarToOurDomain(domain string) bool {
	return slices.ContainsFunc(ServiceAnnotationDomains, func(own string) bool {
		return own == domain || EditDistance(own, domain) == 1 || AreAnagrams(own, domain)
	})
}

// IsAnnotationMeantForGantry reports whether an annotation is in one of our domains, or almost: it
// may be misspelt.
func IsAnnotationMeantForGantry(key string) bool {
	domain, _, hasDomain := strings.Cut(key, "/")
	return hasDomain && isSimilarToOurDomain(domain)
}

// AreAnagrams reports whether the texts differ only in the order of their letters.
func AreAnagrams(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	x, y := []byte(a), []byte(b)
	slices.Sort(x)
	slices.Sort(y)
	return slices.Equal(x, y)
}

// UnknownAnnotation is an annotation of a Service that nothing reads.
type UnknownAnnotation struct {
	Key string
	// NearestKnownKey is the annotation that was probably meant.
	NearestKnownKey string
}

// FindUnknownAnnotations returns the annotations of the Service that are in one of our domains, or
// almost, and that nothing reads, sorted. They are probably misspelt.
func FindUnknownAnnotations(s *corev1.Service) []UnknownAnnotation {
	var unknown []string
	for key := range s.Annotations {
		if isSimilarToOurDomain(parseAnnotationDomain(key)) && !slices.Contains(knownServiceAnnotations, key) {
			unknown = append(unknown, key)
		}
	}
	slices.Sort(unknown)
	var out []UnknownAnnotation
	for _, key := range unknown[:min(len(unknown), maxReportedUnknownAnnotations)] {
		out = append(out, UnknownAnnotation{key, findNearestAnnotation(key)})
	}
	return out
}

// ExplainUnknownAnnotations returns a sentence for each annotation that FindUnknownAnnotations
// finds.
func ExplainUnknownAnnotations(s *corev1.Service) []string {
	var out []string
	for _, a := range FindUnknownAnnotations(s) {
		out = append(out, fmt.Sprintf("the annotation %s is unknown and ignored: did you mean %s?", a.Key, a.NearestKnownKey))
	}
	return out
}

// findNearestAnnotation returns the annotation that the owner of a Service probably meant: the one
// that has most words in common with the key, and among those the one with fewest different
// letters.
func findNearestAnnotation(key string) string {
	words := wordsOfAnnotation(key)
	nearness := func(known string) int {
		n := 0
		for _, w := range wordsOfAnnotation(known) {
			if slices.Contains(words, w) {
				n++
			}
		}
		return n
	}
	return slices.MinFunc(userWrittenServiceAnnotations, func(x, y string) int {
		if d := nearness(y) - nearness(x); d != 0 {
			return d
		}
		return EditDistance(strings.Join(words, ""), strings.Join(wordsOfAnnotation(x), "")) - EditDistance(strings.Join(words, ""), strings.Join(wordsOfAnnotation(y), ""))
	})
}

// wordsOfAnnotation splits the name of an annotation into lower-case words without a plural s.
func wordsOfAnnotation(key string) []string {
	_, name, _ := strings.Cut(key, "/")
	var out []string
	var word strings.Builder
	end := func() {
		if word.Len() > 0 {
			out = append(out, strings.TrimSuffix(strings.ToLower(word.String()), "s"))
			word.Reset()
		}
	}
	wasLower := false
	for _, r := range name {
		if !unicode.IsLetter(r) || unicode.IsUpper(r) && wasLower {
			end()
		}
		if unicode.IsLetter(r) {
			word.WriteRune(r)
		}
		wasLower = unicode.IsLower(r)
	}
	end()
	return out
}

// EditDistance counts the letters to insert, delete or replace (Levenshtein).
func EditDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
