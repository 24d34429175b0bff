package main

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/containerd/api/types/runc/options"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"
)

const remapped = 100000

func (p *program) container(reference, id string, snapshot func(containerd.Image) containerd.NewContainerOpts, words []string, more ...oci.SpecOpts) (containerd.Container, error) {
	image, err := p.client.GetImage(p.ctx, reference)
	if err != nil {
		return nil, err
	}
	spec := append([]oci.SpecOpts{oci.WithImageConfig(image), oci.WithProcessArgs(words...)}, more...)
	return p.client.NewContainer(p.ctx, id,
		containerd.WithImage(image),
		containerd.WithSnapshotter(p.snapshotter),
		snapshot(image),
		containerd.WithRuntime("io.containerd.runc.v2", &options.Options{BinaryName: p.runc, Root: filepath.Join(p.directory, "runc")}),
		containerd.WithNewSpec(spec...))
}

// toEnd runs a container that was created; what it wrote to its standard output.
func (p *program) toEnd(container containerd.Container) (string, error) {
	var output, complaint bytes.Buffer
	task, err := container.NewTask(p.ctx, cio.NewCreator(cio.WithStreams(nil, &output, &complaint), cio.WithFIFODir(filepath.Join(p.directory, "fifo"))))
	if err != nil {
		return "", err
	}
	defer task.Delete(p.ctx, containerd.WithProcessKill)
	exited, err := task.Wait(p.ctx)
	if err != nil {
		return "", err
	}
	if err := task.Start(p.ctx); err != nil {
		return "", err
	}
	status := <-exited
	task.IO().Wait()
	if status.Error() != nil {
		return "", status.Error()
	}
	if status.ExitCode() != 0 {
		return "", fmt.Errorf("exit status %d: %s", status.ExitCode(), complaint.String())
	}
	return output.String(), nil
}

func newSnapshot(id string) func(containerd.Image) containerd.NewContainerOpts {
	return func(image containerd.Image) containerd.NewContainerOpts { return containerd.WithNewSnapshot(id, image) }
}

func (p *program) runToEnd(reference, id string, snapshot func(containerd.Image) containerd.NewContainerOpts, words []string, more ...oci.SpecOpts) (string, error) {
	container, err := p.container(reference, id, snapshot, words, more...)
	if err != nil {
		return "", err
	}
	defer container.Delete(p.ctx, containerd.WithSnapshotCleanup)
	return p.toEnd(container)
}

// create runs a container to its end and keeps it, to be committed.
func (p *program) create(arguments []string) (any, error) {
	container, err := p.container(arguments[0], arguments[1], newSnapshot(arguments[1]), arguments[2:])
	if err != nil {
		return nil, err
	}
	return p.toEnd(container)
}

func (p *program) run(arguments []string) (any, error) {
	id := "g" + random()
	return p.runToEnd(arguments[0], id, newSnapshot(id), arguments[1:])
}

// runRemapped runs a container in a user namespace of its own, whose root is the user `remapped` of this machine.
func (p *program) runRemapped(arguments []string) (any, error) {
	id := "g" + random()
	snapshot := func(image containerd.Image) containerd.NewContainerOpts {
		return containerd.WithNewSnapshot(id, image, containerd.WithRemapperLabels(0, remapped, 0, remapped, 65536))
	}
	mapping := []specs.LinuxIDMapping{{ContainerID: 0, HostID: remapped, Size: 65536}}
	return p.runToEnd(arguments[0], id, snapshot, arguments[1:], oci.WithUserNamespace(mapping, mapping))
}

// runMany runs a number of containers of one image at once; how many of each output there were.
func (p *program) runMany(arguments []string) (any, error) {
	number, err := strconv.Atoi(arguments[1])
	if err != nil {
		return nil, err
	}
	var (
		together sync.WaitGroup
		guard    sync.Mutex
		outputs  = map[string]int{}
	)
	for range number {
		together.Add(1)
		go func() {
			defer together.Done()
			id := "g" + random()
			output, err := p.runToEnd(arguments[0], id, newSnapshot(id), arguments[2:])
			guard.Lock()
			defer guard.Unlock()
			if err != nil {
				output = strings.TrimSpace(err.Error())
			}
			outputs[output]++
		}()
	}
	together.Wait()
	return outputs, nil
}
