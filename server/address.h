// HOST:PORT.
#ifndef OSDN_SERVER_ADDRESS_H_
#define OSDN_SERVER_ADDRESS_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace osdn {

struct Address {
  std::string host;  // a name, an IPv4 or an IPv6 address (without brackets)
  uint16_t port = 0;

  // HOST:PORT, with brackets round an IPv6 address.
  std::string ToString() const;
  // True when only this machine can connect: 127.0.0.0/8, ::1, "localhost".
  bool is_loopback() const;
};

// "host:port" or "[ipv6]:port". INVALID_ARGUMENT with the text and what is wrong.
absl::StatusOr<Address> ParseAddress(absl::string_view text);

// Tries to bind and lets go again: the reason in words where the RPC library would only say
// "failed". FAILED_PRECONDITION naming the address and the cause (in use, not of this machine, no
// permission).
absl::Status CheckCanBind(const Address& address);

}  // namespace osdn

#endif  // OSDN_SERVER_ADDRESS_H_
