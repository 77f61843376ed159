// TLS for the server's ports, from PEM files that may be replaced while it runs.
#ifndef OSDN_SERVER_TLS_H_
#define OSDN_SERVER_TLS_H_

#include <grpcpp/security/server_credentials.h>

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/tls_files.h"

namespace osdn {

// OK when the files are there, can be parsed and belong together. FAILED_PRECONDITION naming the
// file and what is wrong.
absl::Status CheckTlsFiles(const TlsFiles& files);

// For gRPC: files are read again every few seconds, and new connections get what was read last.
// What does not fit together is passed over. CheckTlsFiles' errors.
absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> TlsCredentials(const TlsFiles& files);

}  // namespace osdn

#endif  // OSDN_SERVER_TLS_H_
