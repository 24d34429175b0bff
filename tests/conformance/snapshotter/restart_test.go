package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
)

// restarted is a snapshotter whose daemon ends and starts again between calls: after every first few calls of a check, when most
// of them have happened, then ever more seldom, in turn killed and asked to end.
type restarted struct {
	root string

	guard      sync.Mutex
	daemon     *daemon
	inner      snapshots.Snapshotter
	disconnect func() error
	calls      int
	due        int
	restarts   int
	walks      int
	failed     error
}

// TestRestarted is the whole suite against a daemon that is restarted between calls.
func TestRestarted(t *testing.T) {
	var (
		guard    sync.Mutex
		restarts int
	)
	// the checks run when the suite has returned
	t.Cleanup(func() {
		t.Logf("%d restarts", restarts)
		if restarts < 21 {
			t.Errorf("only %d restarts: fewer than one a check", restarts)
		}
	})
	testsuite.SnapshotterSuite(t, "puzzlefs", func(_ context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		made := &restarted{root: root, due: 2}
		if err := made.begin(); err != nil {
			return nil, nil, err
		}
		return made, func() error {
			guard.Lock()
			defer guard.Unlock()
			restarts += made.restarts
			return errors.Join(made.failed, made.disconnect(), made.daemon.end(syscall.SIGTERM))
		}, nil
	})
}

func (r *restarted) begin() error {
	var err error
	if r.daemon, err = serve(r.root); err != nil {
		return err
	}
	r.inner, r.disconnect, err = connect(r.daemon.socket)
	return err
}

// now is the snapshotter to ask, after a restart if one is due. Calls are not under way meanwhile: nobody can promise more than
// that what was answered stays true.
func (r *restarted) now() (snapshots.Snapshotter, error) {
	r.calls++
	if r.calls < r.due || r.walks > 0 || r.failed != nil {
		return r.inner, r.failed
	}
	r.due *= 2
	signal := syscall.SIGKILL
	if r.restarts%2 == 1 {
		signal = syscall.SIGTERM
	}
	r.restarts++
	if err := errors.Join(r.disconnect(), r.daemon.end(signal), r.begin()); err != nil {
		r.failed = fmt.Errorf("restart %d: %w", r.restarts, err)
	}
	return r.inner, r.failed
}

func ask[T any](r *restarted, call func(snapshots.Snapshotter) (T, error)) (T, error) {
	r.guard.Lock()
	defer r.guard.Unlock()
	inner, err := r.now()
	if err != nil {
		var none T
		return none, err
	}
	return call(inner)
}

func (r *restarted) Stat(ctx context.Context, key string) (snapshots.Info, error) {
	return ask(r, func(s snapshots.Snapshotter) (snapshots.Info, error) { return s.Stat(ctx, key) })
}

func (r *restarted) Update(ctx context.Context, info snapshots.Info, fieldpaths ...string) (snapshots.Info, error) {
	return ask(r, func(s snapshots.Snapshotter) (snapshots.Info, error) { return s.Update(ctx, info, fieldpaths...) })
}

func (r *restarted) Usage(ctx context.Context, key string) (snapshots.Usage, error) {
	return ask(r, func(s snapshots.Snapshotter) (snapshots.Usage, error) { return s.Usage(ctx, key) })
}

func (r *restarted) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	return ask(r, func(s snapshots.Snapshotter) ([]mount.Mount, error) { return s.Mounts(ctx, key) })
}

func (r *restarted) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return ask(r, func(s snapshots.Snapshotter) ([]mount.Mount, error) { return s.Prepare(ctx, key, parent, opts...) })
}

func (r *restarted) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return ask(r, func(s snapshots.Snapshotter) ([]mount.Mount, error) { return s.View(ctx, key, parent, opts...) })
}

func (r *restarted) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	_, err := ask(r, func(s snapshots.Snapshotter) (any, error) { return nil, s.Commit(ctx, name, key, opts...) })
	return err
}

func (r *restarted) Remove(ctx context.Context, key string) error {
	_, err := ask(r, func(s snapshots.Snapshotter) (any, error) { return nil, s.Remove(ctx, key) })
	return err
}

func (r *restarted) Walk(ctx context.Context, fn snapshots.WalkFunc, filters ...string) error {
	// fn may ask again: without the guard, and before the walk has ended
	r.guard.Lock()
	inner, err := r.now()
	r.walks++
	r.guard.Unlock()
	if err == nil {
		err = inner.Walk(ctx, fn, filters...)
	}
	r.guard.Lock()
	r.walks--
	r.guard.Unlock()
	return err
}

func (r *restarted) Cleanup(ctx context.Context) error {
	_, err := ask(r, func(s snapshots.Snapshotter) (any, error) { return nil, s.(snapshots.Cleaner).Cleanup(ctx) })
	return err
}

func (r *restarted) Close() error { return nil }
