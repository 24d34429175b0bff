package main

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"google.golang.org/grpc"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// answers is what CRI said in the course of a pod's life.
type answers struct {
	Image      string            `json:"image"`
	Output     string            `json:"output"`
	Writable   uint64            `json:"writable"`
	Mountpoint string            `json:"mountpoint"`
	Used       uint64            `json:"used"`
	Inodes     uint64            `json:"inodes"`
	Images     map[string]uint64 `json:"images"`
	Stored     []string          `json:"stored"`
	Left       []string          `json:"left"`
}

// cri does what the kubelet does with a pod of one container on the host's network: pulled, run, asked, and removed again.
func (p *program) cri(arguments []string) (any, error) {
	connection, ok := p.client.Conn().(*grpc.ClientConn)
	if !ok {
		return nil, fmt.Errorf("no gRPC connection but %T", p.client.Conn())
	}
	images, pods := runtime.NewImageServiceClient(connection), runtime.NewRuntimeServiceClient(connection)
	var said answers
	spec := &runtime.ImageSpec{Image: arguments[0]}
	logs := filepath.Join(p.directory, "logs")
	if err := os.MkdirAll(logs, 0o755); err != nil {
		return nil, err
	}
	host := &runtime.NamespaceOption{Network: runtime.NamespaceMode_NODE}
	pod := &runtime.PodSandboxConfig{
		Metadata:     &runtime.PodSandboxMetadata{Name: "pod", Uid: random(), Namespace: "test"},
		LogDirectory: logs,
		Linux: &runtime.LinuxPodSandboxConfig{
			CgroupParent:    "/" + p.cgroup,
			SecurityContext: &runtime.LinuxSandboxSecurityContext{NamespaceOptions: host},
		},
	}
	// a pod of another runtime than the default one says so when it is run and, for the pull, by an annotation
	handler := arguments[1]
	if handler == "-" {
		handler = ""
	} else {
		pod.Annotations = map[string]string{"io.containerd.cri.runtime-handler": handler}
	}
	pulled, err := images.PullImage(p.ctx, &runtime.PullImageRequest{Image: spec, SandboxConfig: pod})
	if err != nil {
		return nil, fmt.Errorf("PullImage: %w", err)
	}
	said.Image = pulled.ImageRef
	sandbox, err := pods.RunPodSandbox(p.ctx, &runtime.RunPodSandboxRequest{Config: pod, RuntimeHandler: handler})
	if err != nil {
		return nil, fmt.Errorf("RunPodSandbox: %w", err)
	}
	defer func() {
		_, _ = pods.StopPodSandbox(p.ctx, &runtime.StopPodSandboxRequest{PodSandboxId: sandbox.PodSandboxId})
		_, _ = pods.RemovePodSandbox(p.ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: sandbox.PodSandboxId})
	}()
	made, err := pods.CreateContainer(p.ctx, &runtime.CreateContainerRequest{
		PodSandboxId:  sandbox.PodSandboxId,
		SandboxConfig: pod,
		Config: &runtime.ContainerConfig{
			Metadata: &runtime.ContainerMetadata{Name: "container"},
			Image:    spec,
			Command:  []string{"/bin/busybox", "sleep", "1000"},
			LogPath:  "container.log",
			Linux: &runtime.LinuxContainerConfig{
				SecurityContext: &runtime.LinuxContainerSecurityContext{NamespaceOptions: host},
			},
		},
	})
	if err != nil {
		return nil, fmt.Errorf("CreateContainer: %w", err)
	}
	if _, err := pods.StartContainer(p.ctx, &runtime.StartContainerRequest{ContainerId: made.ContainerId}); err != nil {
		return nil, fmt.Errorf("StartContainer: %w", err)
	}
	executed, err := pods.ExecSync(p.ctx, &runtime.ExecSyncRequest{ContainerId: made.ContainerId, Cmd: arguments[2:], Timeout: 60})
	if err != nil {
		return nil, fmt.Errorf("ExecSync: %w", err)
	}
	if executed.ExitCode != 0 {
		return nil, fmt.Errorf("ExecSync: exit status %d: %s", executed.ExitCode, executed.Stderr)
	}
	said.Output = string(executed.Stdout)
	// what containerd answers here it gathers every few seconds (stats_collect_period), of its default snapshotter alone
	written, measured := time.Now().UnixNano(), int64(0)
	for deadline := time.Now().Add(time.Minute); handler == "" && (measured < written || said.Used == 0); time.Sleep(100 * time.Millisecond) {
		stats, err := pods.ContainerStats(p.ctx, &runtime.ContainerStatsRequest{ContainerId: made.ContainerId})
		if err != nil {
			return nil, fmt.Errorf("ContainerStats: %w", err)
		}
		measured = stats.Stats.GetWritableLayer().GetTimestamp()
		said.Writable = stats.Stats.GetWritableLayer().GetUsedBytes().GetValue()
		used, err := images.ImageFsInfo(p.ctx, &runtime.ImageFsInfoRequest{})
		if err != nil {
			return nil, fmt.Errorf("ImageFsInfo: %w", err)
		}
		for _, one := range used.ImageFilesystems {
			said.Mountpoint = one.FsId.GetMountpoint()
			said.Used, said.Inodes = one.UsedBytes.GetValue(), one.InodesUsed.GetValue()
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("no figures after a minute: %v, %v", stats, used)
		}
	}
	err = p.client.ContentStore().Walk(p.ctx, func(info content.Info) error {
		said.Stored = append(said.Stored, info.Digest.String())
		return nil
	})
	if err != nil {
		return nil, err
	}
	listed, err := images.ListImages(p.ctx, &runtime.ListImagesRequest{})
	if err != nil {
		return nil, fmt.Errorf("ListImages: %w", err)
	}
	said.Images = map[string]uint64{}
	for _, one := range listed.Images {
		for _, tag := range one.RepoTags {
			said.Images[tag] = one.Size
		}
	}
	if _, err := pods.StopContainer(p.ctx, &runtime.StopContainerRequest{ContainerId: made.ContainerId}); err != nil {
		return nil, fmt.Errorf("StopContainer: %w", err)
	}
	if _, err := pods.RemoveContainer(p.ctx, &runtime.RemoveContainerRequest{ContainerId: made.ContainerId}); err != nil {
		return nil, fmt.Errorf("RemoveContainer: %w", err)
	}
	if _, err := images.RemoveImage(p.ctx, &runtime.RemoveImageRequest{Image: spec}); err != nil {
		return nil, fmt.Errorf("RemoveImage: %w", err)
	}
	listed, err = images.ListImages(p.ctx, &runtime.ListImagesRequest{})
	if err != nil {
		return nil, fmt.Errorf("ListImages: %w", err)
	}
	said.Left = []string{}
	for _, one := range listed.Images {
		said.Left = append(said.Left, one.RepoTags...)
	}
	return said, nil
}
