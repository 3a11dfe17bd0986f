// A minimal header-only ext_proc server on grpc-go: the least that any Go server would have to do.
//
//	extproc SOCKET UNIT_HEADER VARIANT=CLUSTER...
//
// It reads the unit header, hashes it to a variant, and stamps the three headers that Turnout stamps.
package main

import (
	"context"
	"fmt"
	"hash/fnv"
	"log"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"turnout.test/extproc/extproc"
)

const overwrite = 2 // OVERWRITE_IF_EXISTS_OR_ADD

type variant struct {
	name, stamp, cluster []byte
}

type server struct {
	extproc.UnimplementedExternalProcessorServer
	unit     string
	variants []variant
}

func (s *server) Process(stream grpc.BidiStreamingServer[extproc.ProcessingRequest, extproc.ProcessingResponse]) error {
	request, err := stream.Recv()
	if err != nil {
		return err
	}
	unit := s.unitOf(request)
	if unit == nil {
		return nil
	}
	// One answer, and the stream ends: nothing else is asked on it.
	return stream.Send(s.answer(unit))
}

func (s *server) unitOf(request *extproc.ProcessingRequest) []byte {
	for _, header := range request.GetRequestHeaders().GetHeaders().GetHeaders() {
		if header.Key == s.unit {
			return header.RawValue
		}
	}
	return nil
}

func (s *server) answer(unit []byte) *extproc.ProcessingResponse {
	hash := fnv.New64a()
	hash.Write(unit)
	sum := hash.Sum64()
	chosen := &s.variants[sum%uint64(len(s.variants))]
	stamp := fmt.Appendf(make([]byte, 0, len(chosen.stamp)+16), "%s%016x", chosen.stamp, sum)
	return &extproc.ProcessingResponse{Response: &extproc.ProcessingResponse_RequestHeaders{
		RequestHeaders: &extproc.HeadersResponse{Response: &extproc.CommonResponse{
			HeaderMutation: &extproc.HeaderMutation{SetHeaders: []*extproc.HeaderValueOption{
				set("x-variant", chosen.name),
				set("x-turnout", stamp),
				set("x-turnout-upstream", chosen.cluster),
			}},
			ClearRouteCache: true,
		}},
	}}
}

func set(key string, value []byte) *extproc.HeaderValueOption {
	return &extproc.HeaderValueOption{
		Header:       &extproc.HeaderValue{Key: key, RawValue: value},
		AppendAction: overwrite,
	}
}

func main() {
	if len(os.Args) < 4 {
		log.Fatal("usage: extproc SOCKET UNIT_HEADER VARIANT=CLUSTER...")
	}
	service := &server{unit: os.Args[2]}
	for _, argument := range os.Args[3:] {
		name, cluster, _ := strings.Cut(argument, "=")
		stamp := []byte("bench;1;" + name + ";0;")
		service.variants = append(service.variants, variant{[]byte(name), stamp, []byte(cluster)})
	}
	listener, err := net.Listen("unix", os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	// The fastest of what was tried: streams on a worker instead of a new goroutine each, and one
	// write buffer for all connections.
	running := grpc.NewServer(grpc.NumStreamWorkers(1), grpc.SharedWriteBuffer(true))
	extproc.RegisterExternalProcessorServer(running, service)
	grpc_health_v1.RegisterHealthServer(running, health.NewServer())
	stopping, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	go func() {
		<-stopping.Done()
		running.Stop()
	}()
	if err := running.Serve(listener); err != nil {
		log.Fatal(err)
	}
}
