"""containerd's snapshots service on a unix socket: names and rules from `layerfs.snapshotter`, on any driver.

From the wire upwards: `hpack`, `frames` and `http2` are HTTP/2, `grpc` the calls in it, `protobuf` and `messages` what
the calls carry, `rooms` whose keys are whose, `service` the verbs; `activation`, `server` and `units` are the process.
"""
