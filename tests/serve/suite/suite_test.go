// Package suite runs containerd's own tests of snapshotters against a socket.
package suite

import (
	"context"
	"fmt"
	"os"
	"sync/atomic"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/namespaces"
	"github.com/containerd/containerd/pkg/dialer"
	"github.com/containerd/containerd/snapshots"
	"github.com/containerd/containerd/snapshots/proxy"
	"github.com/containerd/containerd/snapshots/testsuite"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

var tests int64

// inNamespace puts every call into a namespace of its own: the tests run side by side and use the same keys.
func inNamespace(ctx context.Context, name string) context.Context {
	outgoing, _ := metadata.FromOutgoingContext(ctx)
	outgoing = outgoing.Copy()
	outgoing.Set(namespaces.GRPCHeader, name)
	return metadata.NewOutgoingContext(ctx, outgoing)
}

func connect(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
	name := fmt.Sprintf("test-%d", atomic.AddInt64(&tests, 1))
	unary := func(ctx context.Context, method string, req, reply interface{}, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		return invoke(inNamespace(ctx, name), method, req, reply, cc, opts...)
	}
	stream := func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
		return open(inNamespace(ctx, name), desc, cc, method, opts...)
	}
	connection, err := grpc.Dial(dialer.DialAddress(os.Getenv("LAYERFS_SOCKET")),
		grpc.WithInsecure(),
		grpc.WithContextDialer(dialer.ContextDialer),
		grpc.WithUnaryInterceptor(unary),
		grpc.WithStreamInterceptor(stream))
	if err != nil {
		return nil, nil, err
	}
	return proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(connection), "layerfs"), connection.Close, nil
}

func TestSnapshotter(t *testing.T) {
	testsuite.SnapshotterSuite(t, "layerfs", connect)
}
