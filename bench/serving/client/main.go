// Command client times the calls of snapshotters behind sockets, interleaved, and prints nanoseconds as JSON lines.
//
//	client prepare ROUNDS FILES NAME=SOCKET,SNAPSHOTTER[,SYNC]...
//	client calls ROUNDS COUNT NAME=SOCKET,SNAPSHOTTER...
//	client list ROUNDS COUNT NAME=SOCKET,SNAPSHOTTER...
//
// SYNC is a directory whose file system is synced before each commit, as part of it: what a commit of layerfs does.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/mount"
	"github.com/containerd/containerd/namespaces"
	"github.com/containerd/containerd/pkg/dialer"
	"github.com/containerd/containerd/snapshots"
	"github.com/containerd/containerd/snapshots/proxy"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
)

type peer struct {
	name        string
	snapshotter snapshots.Snapshotter
	sync        string
	parent      string
}

var (
	ctx  = namespaces.WithNamespace(context.Background(), "bench")
	kept = snapshots.WithLabels(map[string]string{"containerd.io/gc.root": "2026-11-20T00:00:00Z"})
)

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func connect(text string) *peer {
	name, rest, _ := strings.Cut(text, "=")
	parts := append(strings.Split(rest, ","), "")
	connection, err := grpc.Dial(dialer.DialAddress(parts[0]), grpc.WithInsecure(), grpc.WithContextDialer(dialer.ContextDialer),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)))
	check(err)
	return &peer{name, proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(connection), parts[1]), parts[2], ""}
}

func fill(mounts []mount.Mount, place string, files int) {
	check(os.MkdirAll(place, 0700))
	check(mount.All(mounts, place))
	for number := 0; number < files; number++ {
		check(os.WriteFile(filepath.Join(place, strconv.Itoa(number)), make([]byte, 1000), 0644))
	}
	check(mount.Unmount(place, 0))
}

func timed(work func()) int64 {
	start := time.Now()
	work()
	return time.Since(start).Nanoseconds()
}

// round prepares, fills, commits and looks at one snapshot, and prepares and removes a container's root on top of it.
func (p *peer) round(number int, place string, files int) map[string]int64 {
	key, name := fmt.Sprintf("key-%d", number), fmt.Sprintf("name-%d", number)
	var mounts []mount.Mount
	var err error
	times := map[string]int64{}
	times["prepare"] = timed(func() { mounts, err = p.snapshotter.Prepare(ctx, key, p.parent, kept) })
	check(err)
	if files > 0 {
		fill(mounts, place, files)
	}
	times["commit"] = timed(func() {
		if p.sync != "" {
			directory, err := os.Open(p.sync)
			check(err)
			check(unix.Syncfs(int(directory.Fd())))
			check(directory.Close())
		}
		err = p.snapshotter.Commit(ctx, name, key, kept)
	})
	check(err)
	times["stat"] = timed(func() { _, err = p.snapshotter.Stat(ctx, name) })
	check(err)
	_, err = p.snapshotter.Prepare(ctx, key, name, kept)
	check(err)
	times["mounts"] = timed(func() { _, err = p.snapshotter.Mounts(ctx, key) })
	check(err)
	times["remove"] = timed(func() { err = p.snapshotter.Remove(ctx, key) })
	check(err)
	if number%10 == 0 {
		p.parent = name
	}
	return times
}

func (p *peer) list(count int) map[string]int64 {
	found := 0
	elapsed := timed(func() {
		check(p.snapshotter.Walk(ctx, func(context.Context, snapshots.Info) error { found++; return nil }))
	})
	if found != count {
		log.Fatalf("%s lists %d of %d", p.name, found, count)
	}
	return map[string]int64{"list": elapsed}
}

// calls makes so many calls one after the other that do nothing, and gives the mean of them.
func (p *peer) calls(count int) map[string]int64 {
	elapsed := timed(func() {
		for number := 0; number < count; number++ {
			check(p.snapshotter.Remove(ctx, fmt.Sprintf("key-%d", number)))
		}
	})
	return map[string]int64{"call": elapsed / int64(count)}
}

func main() {
	rounds, err := strconv.Atoi(os.Args[2])
	check(err)
	size, err := strconv.Atoi(os.Args[3])
	check(err)
	var peers []*peer
	for _, text := range os.Args[4:] {
		peers = append(peers, connect(text))
	}
	place, err := os.MkdirTemp("", "layerfs-bench-")
	check(err)
	out := json.NewEncoder(os.Stdout)
	if os.Args[1] == "list" {
		for _, p := range peers {
			for number := 0; number < size; number++ {
				_, err := p.snapshotter.Prepare(ctx, fmt.Sprintf("key-%d", number), "", kept)
				check(err)
			}
		}
	}
	for number := 0; number < rounds; number++ {
		for _, p := range peers {
			var times map[string]int64
			switch os.Args[1] {
			case "list":
				times = p.list(size)
			case "calls":
				times = p.calls(size)
			default:
				times = p.round(number, place, size)
			}
			check(out.Encode(map[string]interface{}{"peer": p.name, "round": number, "times": times}))
		}
	}
	check(os.RemoveAll(place))
}
