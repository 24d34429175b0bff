package snapshotter

import (
	"context"
	"math/rand"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/filters"
)

// adapt is how containerd's snapshotters show a snapshot to a filter.
func adapt(info snapshots.Info) filters.Adaptor {
	return filters.AdapterFunc(func(path []string) (string, bool) {
		switch path[0] {
		case "kind":
			return strings.ToLower(info.Kind.String()), true
		case "name":
			return info.Name, true
		case "parent":
			return info.Parent, true
		case "labels":
			value, ok := info.Labels[strings.Join(path[1:], ".")]
			return value, ok
		}
		return "", false
	})
}

// Pieces of filters: fields, operators and values, as they should be and as they should not.
var (
	fields = []string{
		"name", "parent", "kind", "labels", "labels.a", `labels."a.b"`, `labels."containerd.io/snapshot.ref"`, `"name"`, "nothing",
		`labels.""`, "labels.a.b", ` name`, "labels. a", "labels.", "1", "_", "/name/", `"name`, "nämé",
	}
	operators = []string{"", "==", "==", "!=", "~=", "~=", " == ", "\t~=", "\u00a0!=", "=", "===", "=~", "!", "\x1c=="}
	values    = []string{
		"", "one", "two", "active", "committed", "view", "x", "ü", "a.b", "x-y", "'x'", "1", "*", "[", "x*", "^x", "o$", ".", ":", "x=y",
		`"one"`, `"x"`, `""`, `"x y"`, `"\x78"`, `"\170"`, `"\u00fc"`, `"\xc3\xbc"`, `"\xc3"`, `"\q"`, `"\U00110000"`, `"\777"`, `"\ud800"`,
		`"`, `"\"`, `"\""`, `"\"`, "/x/", "|x|", "/o.e/", `/\\w+/`, `/\w/`, "/", "|", `|\||`, `/\//`, `|\\||`, "\x00", "\x01", "x\x01", "\ufffd",
		"x\ufffd", "\u00a0x", "\u2028x", "a\u0301", "日本", `\`, "x ", "\"x\ny\"", "one\n", "x\u200by", "\ue000", "(?i)ONE", ".*", "^$", `"(a|n)"`,
	}
	joints = []string{",", ",", ",", ", ", " ,", ",,", ";", "."}
)

func pick(random *rand.Rand, from []string) string { return from[random.Intn(len(from))] }

func makeFilter(random *rand.Rand) string {
	text := pick(random, fields) + pick(random, operators) + pick(random, values)
	for random.Intn(3) == 0 {
		text += pick(random, joints) + pick(random, fields) + pick(random, operators) + pick(random, values)
	}
	return text
}

// TestFilters compares which snapshots List answers with what containerd's own parser wants, for many filters.
func TestFilters(t *testing.T) {
	root, err := os.MkdirTemp("", "filters-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(root)
	ctx := context.Background()
	sn, stop, err := start(ctx, root)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	}()
	labels := func(words ...string) snapshots.Opt {
		all := map[string]string{}
		for i := 0; i < len(words); i += 2 {
			all[words[i]] = words[i+1]
		}
		return snapshots.WithLabels(all)
	}
	steps := []func() error{
		func() error { _, err := sn.Prepare(ctx, "temporary", "", labels()); return err },
		func() error { return sn.Commit(ctx, "one", "temporary", labels("a", "x", "a.b", "ü")) },
		func() error {
			_, err := sn.Prepare(ctx, "two", "one", labels("containerd.io/snapshot.ref", "one", "a", "x y"))
			return err
		},
		func() error { _, err := sn.View(ctx, "x", "one", labels("", "x")); return err },
		func() error { _, err := sn.Prepare(ctx, "日本", "", labels("a", "one", "a.b", "|")); return err },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	var all []snapshots.Info
	if err := sn.Walk(ctx, func(_ context.Context, info snapshots.Info) error { all = append(all, info); return nil }); err != nil {
		t.Fatal(err)
	}

	random := rand.New(rand.NewSource(1))
	accepted := 0
	for range 6000 {
		list := []string{makeFilter(random)}
		if random.Intn(5) == 0 {
			list = append(list, makeFilter(random))
		}
		wanted := []string{}
		filter, wrong := filters.ParseAll(list...)
		if wrong == nil {
			accepted++
			for _, info := range all {
				if filter.Match(adapt(info)) {
					wanted = append(wanted, info.Name)
				}
			}
		}
		got := []string{}
		err := sn.Walk(ctx, func(_ context.Context, info snapshots.Info) error { got = append(got, info.Name); return nil }, list...)
		if err != nil && strings.Contains(err.Error(), "no regular expression") {
			// containerd logs it and matches nothing; we say so.
			continue
		}
		if (err != nil) != (wrong != nil) {
			t.Errorf("%q: containerd says %v, the snapshotter %v", list, wrong, err)
		} else if err == nil && !slices.Equal(got, wanted) {
			t.Errorf("%q: containerd wants %q, the snapshotter answers %q", list, wanted, got)
		}
	}
	if accepted < 500 {
		t.Errorf("only %d filters were valid: the pieces no longer make any", accepted)
	}
}
