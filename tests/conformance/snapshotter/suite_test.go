// Package snapshotter runs containerd's own suite for snapshotters against a daemon over its socket.
//
// The environment variable SNAPSHOTTER_COMMAND is the command, its words parted by spaces, that serves snapshots when
// "--root DIR --address SOCKET" is appended; every check gets a process and a directory of its own.
package snapshotter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

const (
	variable  = "SNAPSHOTTER_COMMAND"
	startTime = time.Minute
	stopTime  = 30 * time.Second
)

// TestSuite is what the implementation under test must pass.
func TestSuite(t *testing.T) {
	testsuite.SnapshotterSuite(t, "puzzlefs", start)
}

// TestOverlayfs is the measure: containerd's own snapshotter on the same kernel. Its name is not "overlayfs" here, because the
// suite asks less of that one: it need not rename a directory of a lower layer.
func TestOverlayfs(t *testing.T) {
	testsuite.SnapshotterSuite(t, "containerd-overlayfs", func(_ context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		sn, err := overlay.NewSnapshotter(root)
		if err != nil {
			return nil, nil, err
		}
		return sn, sn.Close, nil
	})
}

// start serves a directory below root, which the suite makes writable for everybody: our own must not be.
func start(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
	words := strings.Fields(os.Getenv(variable))
	if len(words) == 0 {
		return nil, nil, fmt.Errorf("%s must hold the command that starts the snapshotter", variable)
	}
	socket := filepath.Join(root, "socket")
	cmd := exec.Command(words[0], append(words[1:], "--root", filepath.Join(root, "state"), "--address", socket)...)
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()

	stop := func() error {
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return err
		}
		select {
		case err := <-exited:
			if err != nil {
				return fmt.Errorf("%v: %s", err, output.String())
			}
			return nil
		case <-time.After(stopTime):
			_ = cmd.Process.Kill()
			<-exited
			return fmt.Errorf("still there %v after SIGTERM: %s", stopTime, output.String())
		}
	}
	for deadline := time.Now().Add(startTime); ; {
		connection, err := net.Dial("unix", socket)
		if err == nil {
			connection.Close()
			break
		}
		select {
		case err := <-exited:
			return nil, nil, fmt.Errorf("ended before it served: %v: %s", err, output.String())
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return nil, nil, errors.Join(fmt.Errorf("does not serve after %v", startTime), stop())
		}
	}
	client, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, nil, errors.Join(err, stop())
	}
	cleanup := func() error { return errors.Join(client.Close(), stop()) }
	return proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(client), "puzzlefs"), cleanup, nil
}
