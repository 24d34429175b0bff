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

// TestParallel runs several suites at once: daemons side by side on one machine, each with its own root.
func TestParallel(t *testing.T) {
	for number := range 2 {
		t.Run(fmt.Sprint(number), func(t *testing.T) {
			t.Parallel()
			testsuite.SnapshotterSuite(t, "puzzlefs", start)
		})
	}
}

// start serves a directory below root. The suite clears the process's umask for a while, and two of them at once may
// leave it cleared: then everybody can write to root, where the daemon rightly serves nothing.
func start(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
	if err := os.Chmod(root, 0o755); err != nil {
		return nil, nil, err
	}
	served, err := serve(root)
	if err != nil {
		return nil, nil, err
	}
	sn, disconnect, err := connect(served.socket)
	if err != nil {
		return nil, nil, errors.Join(err, served.end(syscall.SIGTERM))
	}
	return sn, func() error { return errors.Join(disconnect(), served.end(syscall.SIGTERM)) }, nil
}

// daemon is a process of the implementation under test.
type daemon struct {
	socket string
	cmd    *exec.Cmd
	exited chan error
	output *bytes.Buffer
}

// serve starts the daemon; it answers when this returns.
func serve(root string) (*daemon, error) {
	words := strings.Fields(os.Getenv(variable))
	if len(words) == 0 {
		return nil, fmt.Errorf("%s must hold the command that starts the snapshotter", variable)
	}
	d := &daemon{socket: filepath.Join(root, "socket"), exited: make(chan error, 1), output: &bytes.Buffer{}}
	d.cmd = exec.Command(words[0], append(words[1:], "--root", filepath.Join(root, "state"), "--address", d.socket)...)
	d.cmd.Stdout, d.cmd.Stderr = d.output, d.output
	// what it leaves behind when it is killed would hold the pipes open
	d.cmd.WaitDelay = time.Second
	if err := d.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { d.exited <- d.cmd.Wait() }()
	for deadline := time.Now().Add(startTime); ; {
		connection, err := net.Dial("unix", d.socket)
		if err == nil {
			connection.Close()
			return d, nil
		}
		select {
		case err := <-d.exited:
			return nil, fmt.Errorf("ended before it served: %v: %s", err, d.output.String())
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return nil, errors.Join(fmt.Errorf("does not serve after %v", startTime), d.end(syscall.SIGKILL))
		}
	}
}

// end sends a signal and waits until the process is gone. Only one that is killed may end in another way than asked to.
func (d *daemon) end(signal syscall.Signal) error {
	if err := d.cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case err := <-d.exited:
		if err != nil && signal != syscall.SIGKILL && !errors.Is(err, exec.ErrWaitDelay) {
			return fmt.Errorf("%v: %s", err, d.output.String())
		}
		return nil
	case <-time.After(stopTime):
		_ = d.cmd.Process.Kill()
		<-d.exited
		return fmt.Errorf("still there %v after %v: %s", stopTime, signal, d.output.String())
	}
}

func connect(socket string) (snapshots.Snapshotter, func() error, error) {
	client, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, nil, err
	}
	return proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(client), "puzzlefs"), client.Close, nil
}
