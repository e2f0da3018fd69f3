// Command nothing serves a snapshots service that does nothing, by gRPC's own server for Go.
package main

import (
	"context"
	"log"
	"net"
	"os"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/gogo/protobuf/types"
	"google.golang.org/grpc"
)

type service struct {
	snapshotsapi.UnimplementedSnapshotsServer
}

func (s *service) Remove(context.Context, *snapshotsapi.RemoveSnapshotRequest) (*types.Empty, error) {
	return &types.Empty{}, nil
}

func main() {
	listener, err := net.Listen("unix", os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	server := grpc.NewServer()
	snapshotsapi.RegisterSnapshotsServer(server, &service{})
	log.Fatal(server.Serve(listener))
}
