package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/core/images/converter"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/rootfs"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// pull is nerdctl's classic path: fetched and unpacked by one unpacker, which tells the snapshotter of each layer's annotations.
func (p *program) pull(arguments []string) (any, error) {
	_, err := p.client.Pull(p.ctx, arguments[0], containerd.WithResolver(resolver()), containerd.WithPullUnpack,
		containerd.WithPullSnapshotter(p.snapshotter))
	return nil, err
}

// pullWithoutUnpacking downloads everything for this platform; nothing is unpacked.
func (p *program) pullWithoutUnpacking(arguments []string) (any, error) {
	_, err := p.client.Pull(p.ctx, arguments[0], containerd.WithResolver(resolver()))
	return nil, err
}

// pullAllPlatforms downloads everything for every platform, then unpacks this one's.
func (p *program) pullAllPlatforms(arguments []string) (any, error) {
	fetched, err := p.client.Fetch(p.ctx, arguments[0], containerd.WithResolver(resolver()),
		containerd.WithPlatformMatcher(platforms.All))
	if err != nil {
		return nil, err
	}
	return nil, containerd.NewImageWithPlatform(p.client, fetched, platforms.Default()).Unpack(p.ctx, p.snapshotter)
}

// unpack is what a client does with an image that is there and not unpacked: layer by layer, without labels.
func (p *program) unpack(arguments []string) (any, error) {
	image, err := p.client.GetImage(p.ctx, arguments[0])
	if err != nil {
		return nil, err
	}
	unpacked, err := image.IsUnpacked(p.ctx, p.snapshotter)
	if err != nil || unpacked {
		return nil, err
	}
	return nil, image.Unpack(p.ctx, p.snapshotter)
}

func (p *program) tag(arguments []string) (any, error) {
	image, err := p.client.ImageService().Get(p.ctx, arguments[0])
	if err != nil {
		return nil, err
	}
	image.Name = arguments[1]
	return nil, p.record(image)
}

func (p *program) record(image images.Image) error {
	if _, err := p.client.ImageService().Create(p.ctx, image); !errdefs.IsAlreadyExists(err) {
		return err
	}
	_, err := p.client.ImageService().Update(p.ctx, image, "target")
	return err
}

// ensure downloads what a lazy pull left in the registry (nerdctl's EnsureAllContent).
func (p *program) ensure(reference string) error {
	image, err := p.client.ImageService().Get(p.ctx, reference)
	if err != nil {
		return err
	}
	_, _, _, missing, err := images.Check(p.ctx, p.client.ContentStore(), image.Target, platforms.Default())
	if err != nil || len(missing) == 0 {
		return err
	}
	_, err = p.client.Fetch(p.ctx, reference, containerd.WithResolver(resolver()),
		containerd.WithPlatformMatcher(platforms.Default()))
	return err
}

// commit makes an image of a container, as nerdctl does: the layers of its image with their annotations, and a tar layer.
func (p *program) commit(arguments []string) (any, error) {
	container, err := p.client.LoadContainer(p.ctx, arguments[0])
	if err != nil {
		return nil, err
	}
	info, err := container.Info(p.ctx)
	if err != nil {
		return nil, err
	}
	if err := p.ensure(info.Image); err != nil {
		return nil, fmt.Errorf("what is missing of %s: %w", info.Image, err)
	}
	ctx, done, err := p.client.WithLease(p.ctx, leases.WithRandomID(), leases.WithExpiration(time.Hour))
	if err != nil {
		return nil, err
	}
	defer done(ctx)
	store, snapshots, differ := p.client.ContentStore(), p.client.SnapshotService(info.Snapshotter), p.client.DiffService()
	base, err := p.client.GetImage(ctx, info.Image)
	if err != nil {
		return nil, err
	}
	config, err := base.Spec(ctx)
	if err != nil {
		return nil, err
	}
	manifest, err := images.Manifest(ctx, store, base.Target(), platforms.Default())
	if err != nil {
		return nil, err
	}
	layer, err := rootfs.CreateDiff(ctx, info.SnapshotKey, snapshots, differ, diff.WithMediaType(ocispec.MediaTypeImageLayerGzip))
	if err != nil {
		return nil, err
	}
	described, err := store.Info(ctx, layer.Digest)
	if err != nil {
		return nil, err
	}
	diffID, err := digest.Parse(described.Labels["containerd.io/uncompressed"])
	if err != nil {
		return nil, err
	}
	layer = ocispec.Descriptor{MediaType: images.MediaTypeDockerSchema2LayerGzip, Digest: layer.Digest, Size: described.Size}
	parent := identity.ChainID(config.RootFS.DiffIDs)
	config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, diffID)
	config.History = append(config.History, ocispec.History{CreatedBy: "commit"})
	chain := identity.ChainID(config.RootFS.DiffIDs)

	key := random() + "-" + chain.String()
	mounts, err := snapshots.Prepare(ctx, key, parent.String())
	if err != nil {
		return nil, err
	}
	if _, err := differ.Apply(ctx, layer, mounts); err != nil {
		return nil, errors.Join(err, snapshots.Remove(ctx, key))
	}
	if err := snapshots.Commit(ctx, chain.String(), key); err != nil && !errdefs.IsAlreadyExists(err) {
		return nil, err
	}

	described2, err := p.write(ctx, images.MediaTypeDockerSchema2Config, config, map[string]string{
		"containerd.io/gc.ref.snapshot." + info.Snapshotter: chain.String(),
	})
	if err != nil {
		return nil, err
	}
	layers := append(manifest.Layers, layer)
	labels := map[string]string{"containerd.io/gc.ref.content.0": described2.Digest.String()}
	for number, one := range layers {
		labels[fmt.Sprintf("containerd.io/gc.ref.content.%d", number+1)] = one.Digest.String()
	}
	target, err := p.write(ctx, images.MediaTypeDockerSchema2Manifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: images.MediaTypeDockerSchema2Manifest,
		Config:    described2,
		Layers:    layers,
	}, labels)
	if err != nil {
		return nil, err
	}
	made := images.Image{Name: arguments[1], Target: target, CreatedAt: time.Now()}
	if err := p.record(made); err != nil {
		return nil, err
	}
	return nil, containerd.NewImage(p.client, made).Unpack(ctx, info.Snapshotter)
}

// push uploads this platform's manifest alone, as nerdctl does: from a temporary image without the others.
func (p *program) push(arguments []string) (any, error) {
	reference := arguments[0]
	if err := p.ensure(reference); err != nil {
		return nil, fmt.Errorf("what is missing of %s: %w", reference, err)
	}
	reduced, err := converter.Convert(p.ctx, p.client, reference+"-tmp-reduced-platform", reference,
		converter.WithPlatform(platforms.Default()))
	if err != nil {
		return nil, err
	}
	err = p.client.Push(p.ctx, reference, reduced.Target, containerd.WithResolver(resolver()),
		containerd.WithPlatformMatcher(platforms.Default()))
	return nil, errors.Join(err, p.client.ImageService().Delete(p.ctx, reduced.Name, images.SynchronousDelete()))
}

func (p *program) save(arguments []string) (any, error) {
	if err := p.ensure(arguments[0]); err != nil {
		return nil, fmt.Errorf("what is missing of %s: %w", arguments[0], err)
	}
	file, err := os.Create(arguments[1])
	if err != nil {
		return nil, err
	}
	err = p.client.Export(p.ctx, file, archive.WithImage(p.client.ImageService(), arguments[0]), archive.WithPlatform(platforms.Default()))
	return nil, errors.Join(err, file.Close())
}

func (p *program) load(arguments []string) (any, error) {
	file, err := os.Open(arguments[0])
	if err != nil {
		return nil, err
	}
	defer file.Close()
	loaded, err := p.client.Import(p.ctx, file, containerd.WithImportPlatform(platforms.Default()))
	if err != nil {
		return nil, err
	}
	names := []string{}
	for _, image := range loaded {
		if err := containerd.NewImage(p.client, image).Unpack(p.ctx, p.snapshotter); err != nil {
			return nil, err
		}
		names = append(names, image.Name)
	}
	return names, nil
}

func (p *program) remove(arguments []string) (any, error) {
	return nil, p.client.ImageService().Delete(p.ctx, arguments[0], images.SynchronousDelete())
}

// prune removes all containers that do not run, then all images that no container uses.
func (p *program) prune([]string) (any, error) {
	containers, err := p.client.Containers(p.ctx)
	if err != nil {
		return nil, err
	}
	used := map[string]bool{}
	for _, container := range containers {
		if err := container.Delete(p.ctx, containerd.WithSnapshotCleanup); err != nil {
			info, err := container.Info(p.ctx)
			if err != nil {
				return nil, err
			}
			used[info.Image] = true
		}
	}
	all, err := p.client.ImageService().List(p.ctx)
	if err != nil {
		return nil, err
	}
	removed := []string{}
	for _, image := range all {
		if !used[image.Name] {
			if err := p.client.ImageService().Delete(p.ctx, image.Name, images.SynchronousDelete()); err != nil {
				return nil, err
			}
			removed = append(removed, image.Name)
		}
	}
	return removed, nil
}

func (p *program) write(ctx context.Context, mediaType string, value any, labels map[string]string) (ocispec.Descriptor, error) {
	data, err := json.Marshal(value)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	described := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	return described, content.WriteBlob(ctx, p.client.ContentStore(), described.Digest.String(), bytes.NewReader(data), described,
		content.WithLabels(labels))
}

func random() string {
	var bytes [6]byte
	_, _ = rand.Read(bytes[:])
	return hex.EncodeToString(bytes[:])
}
