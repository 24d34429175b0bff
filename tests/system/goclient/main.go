// Command goclient does with containerd's client library what nerdctl and other clients do, one code path a subcommand.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"sort"
	"strings"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/pkg/namespaces"
)

// program is what every subcommand works with.
type program struct {
	ctx         context.Context
	client      *containerd.Client
	snapshotter string
	runc        string
	directory   string
	cgroup      string
}

type command struct {
	arguments string
	do        func(p *program, arguments []string) (any, error)
}

var commands = map[string]command{
	"pull":           {"REF", (*program).pull},
	"pull-no-unpack": {"REF", (*program).pullWithoutUnpacking},
	"pull-all":       {"REF", (*program).pullAllPlatforms},
	"unpack":         {"REF", (*program).unpack},
	"tag":            {"REF NEW", (*program).tag},
	"commit":         {"CONTAINER REF", (*program).commit},
	"push":           {"REF", (*program).push},
	"save":           {"REF FILE", (*program).save},
	"load":           {"FILE", (*program).load},
	"remove":         {"REF", (*program).remove},
	"prune":          {"", (*program).prune},
	"create":         {"REF CONTAINER COMMAND...", (*program).create},
	"run":            {"REF COMMAND...", (*program).run},
	"run-remapped":   {"REF COMMAND...", (*program).runRemapped},
	"run-many":       {"REF NUMBER COMMAND...", (*program).runMany},
	"cri":            {"REF PAUSE COMMAND...", (*program).cri},
}

func main() {
	address := flag.String("a", "", "containerd's socket")
	namespace := flag.String("n", "default", "namespace")
	snapshotter := flag.String("snapshotter", "puzzlefs", "snapshotter")
	runc := flag.String("runc", "runc", "path of runc")
	directory := flag.String("directory", os.TempDir(), "where what a container needs while it runs is kept")
	cgroup := flag.String("cgroup", "goclient", "cgroup below which pods run")
	flag.Usage = usage
	flag.Parse()
	chosen, ok := commands[flag.Arg(0)]
	if !ok {
		usage()
		os.Exit(2)
	}
	ctx := namespaces.WithNamespace(context.Background(), *namespace)
	client, err := containerd.New(*address, containerd.WithDefaultNamespace(*namespace))
	if err != nil {
		fail(err)
	}
	p := &program{ctx: ctx, client: client, snapshotter: *snapshotter, runc: *runc, directory: *directory, cgroup: *cgroup}
	answer, err := chosen.do(p, flag.Args()[1:])
	client.Close()
	if err != nil {
		fail(err)
	}
	if answer != nil {
		if err := json.NewEncoder(os.Stdout).Encode(answer); err != nil {
			fail(err)
		}
	}
}

func usage() {
	fmt.Fprintln(os.Stderr, "usage: goclient [options] COMMAND, where COMMAND is one of")
	var names []string
	for name := range commands {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		fmt.Fprintf(os.Stderr, "  %s %s\n", name, commands[name].arguments)
	}
	flag.PrintDefaults()
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "goclient:", err)
	os.Exit(1)
}

// resolver speaks plain HTTP, as registries of the tests do.
func resolver() remotes.Resolver {
	hosts := docker.ConfigureDefaultRegistries(docker.WithPlainHTTP(docker.MatchAllHosts))
	return docker.NewResolver(docker.ResolverOptions{Hosts: hosts})
}

// repository is a reference without its tag.
func repository(reference string) string {
	if colon := strings.LastIndex(reference, ":"); colon > strings.LastIndex(reference, "/") {
		return reference[:colon]
	}
	return reference
}
