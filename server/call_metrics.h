// Counts every gRPC call as it ends: method, status code, duration.
#ifndef OSDN_SERVER_CALL_METRICS_H_
#define OSDN_SERVER_CALL_METRICS_H_

#include <grpcpp/support/server_interceptor.h>

#include <memory>

#include "server/metrics.h"

namespace osdn {

// `metrics` outlives the server.
std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface> CountCalls(Metrics* metrics);

}  // namespace osdn

#endif  // OSDN_SERVER_CALL_METRICS_H_
