package policy

import (
	"go/ast"
	"path"
	"slices"
	"strings"
	"testing"
)

// The figures of names in product code. A reader who sees only the package and the name of a
// function should be able to guess what it does, and short names rarely allow that.
const (
	minMeanFunctionNameLetters   = 8.5
	maxLettersOfShortName        = 4
	maxShareOfShortFunctionNames = 0.15
	maxLettersOfShortVerb        = 5
	maxTypesWithSameShortMethod  = 6
)

// reasonByAllowedShortMethodName are short method names that Go and its libraries give one meaning,
// and where from.
var reasonByAllowedShortMethodName = map[string]string{
	"Add":    "a collection, as sync.WaitGroup",
	"All":    "an iterator, as slices.All",
	"Close":  "io.Closer",
	"Error":  "error",
	"Get":    "client.Client",
	"Len":    "sort.Interface and heap.Interface",
	"Less":   "sort.Interface and heap.Interface",
	"List":   "client.Client",
	"Pop":    "heap.Interface",
	"Push":   "heap.Interface",
	"Read":   "io.Reader",
	"Reset":  "time.Timer",
	"Run":    "manager.Runnable and exec.Cmd: works until its context ends",
	"Set":    "flag.Value; elsewhere it declares the desired state",
	"Start":  "manager.Runnable and exec.Cmd",
	"Stop":   "time.Timer",
	"String": "fmt.Stringer",
	"Swap":   "sort.Interface and heap.Interface",
	"Write":  "io.Writer",
}

// isProductFile reports whether a file is part of the two programs. Tests are not, and neither are
// packages that replace something in tests: their names end in "test".
func isProductFile(f sourceFile) bool {
	base := path.Base(f.dir)
	standIn := strings.HasSuffix(base, "test") && base != "latest"
	return isInOrBelow(f.dir, "api", "cmd", "internal", "controller", "speaker") && !f.isTest && !standIn
}

// visitProductFunctions calls visit for each function and method of product code.
func visitProductFunctions(t *testing.T, visit func(sourceFile, *ast.FuncDecl)) {
	t.Helper()
	for _, f := range parseSources(t) {
		if !isProductFile(f) {
			continue
		}
		for _, d := range f.ast.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok {
				visit(f, fn)
			}
		}
	}
}

func TestFunctionNamesAreLongEnough(t *testing.T) {
	count, letters, short := 0, 0, map[string]int{}
	shortCount := 0
	visitProductFunctions(t, func(_ sourceFile, fn *ast.FuncDecl) {
		count++
		letters += len(fn.Name.Name)
		if len(fn.Name.Name) <= maxLettersOfShortName {
			shortCount++
			short[fn.Name.Name]++
		}
	})
	if count == 0 {
		t.Fatal("product code has no function: this test looks in the wrong place")
	}
	mean, share := float64(letters)/float64(count), float64(shortCount)/float64(count)
	t.Logf("%d functions, %.2f letters on average, %.1f %% of %d or fewer", count, mean, 100*share, maxLettersOfShortName)
	if mean < minMeanFunctionNameLetters {
		t.Errorf("function names of product code have %.2f letters on average, fewer than %.1f: say verb and object",
			mean, minMeanFunctionNameLetters)
	}
	if share > maxShareOfShortFunctionNames {
		t.Errorf("%.1f %% of the function names of product code have %d letters or fewer, more than %.0f %%: say verb and object; most frequent: %s",
			100*share, maxLettersOfShortName, 100*maxShareOfShortFunctionNames, strings.Join(mostFrequentKeys(short, 12), ", "))
	}
}

// mostFrequentKeys returns up to n keys, those with the highest counts first.
func mostFrequentKeys(counts map[string]int, n int) []string {
	var keys []string
	for k := range counts {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b string) int {
		if counts[a] != counts[b] {
			return counts[b] - counts[a]
		}
		return strings.Compare(a, b)
	})
	return keys[:min(n, len(keys))]
}

// TestShortMethodNamesAreOnFewTypes counts the types that have a method of the same short name. A
// verb on many types means something else on each.
func TestShortMethodNamesAreOnFewTypes(t *testing.T) {
	types := map[string][]string{} // by verb: directory and type
	visitProductFunctions(t, func(f sourceFile, fn *ast.FuncDecl) {
		verb := fn.Name.Name
		if fn.Recv == nil || len(verb) > maxLettersOfShortVerb || reasonByAllowedShortMethodName[verb] != "" {
			return
		}
		types[verb] = append(types[verb], f.dir+"."+receiverTypeName(fn))
	})
	for verb, on := range types {
		slices.Sort(on)
		if on = slices.Compact(on); len(on) > maxTypesWithSameShortMethod {
			t.Errorf("%q is a method of %d types, more than %d: say what it acts on, or give the reason in commonVerbs: %s",
				verb, len(on), maxTypesWithSameShortMethod, strings.Join(on, ", "))
		}
	}
}

// receiverTypeName returns the name of the type that a method belongs to.
func receiverTypeName(fn *ast.FuncDecl) string {
	e := fn.Recv.List[0].Type
	if p, ok := e.(*ast.StarExpr); ok {
		e = p.X
	}
	switch g := e.(type) { // a generic type
	case *ast.IndexExpr:
		e = g.X
	case *ast.IndexListExpr:
		e = g.X
	}
	if id, ok := e.(*ast.Ident); ok {
		return id.Name
	}
	return "?"
}
