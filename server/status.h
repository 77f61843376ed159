// Errors on their way to a gRPC client: absl::Status with google.rpc details as payloads.
#ifndef OSDN_SERVER_STATUS_H_
#define OSDN_SERVER_STATUS_H_

#include <grpcpp/support/status.h>

#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "engine/sampler.h"

namespace osdn {

// INVALID_ARGUMENT with a google.rpc.BadRequest of all violations; the message lists the first few.
// `violations` is not empty.
absl::Status InvalidRequestError(absl::Span<const FieldViolation> violations);

// What clients are told to wait when a bound is reached. Something comes free with every request
// that ends, so the exact figure matters less than that there is one.
inline constexpr absl::Duration kRetryDelay = absl::Seconds(1);

// `status` with a google.rpc.RetryInfo: try again after `delay`.
absl::Status WithRetryDelay(absl::Status status, absl::Duration delay);

// The one way from our errors to the wire. Codes are the same; payloads become details in
// grpc-status-details-bin. Message and details are cut so that the trailer stays below the 8 KiB
// that clients accept, and are valid UTF-8 whatever the status held.
grpc::Status ToGrpcStatus(const absl::Status& status);

}  // namespace osdn

#endif  // OSDN_SERVER_STATUS_H_
