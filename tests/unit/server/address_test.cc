#include "server/address.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>

namespace osdn {
namespace {

using ::testing::HasSubstr;

std::string Message(const absl::Status& status) { return std::string(status.message()); }

TEST(AddressTest, ReadsHostAndPort) {
  const absl::StatusOr<Address> address = ParseAddress("0.0.0.0:50051");
  ASSERT_TRUE(address.ok()) << address.status();
  EXPECT_EQ(address->host, "0.0.0.0");
  EXPECT_EQ(address->port, 50051);
  EXPECT_EQ(address->ToString(), "0.0.0.0:50051");
}

TEST(AddressTest, KeepsBracketsRoundIpv6) {
  const absl::StatusOr<Address> address = ParseAddress("[fe80::1]:80");
  ASSERT_TRUE(address.ok()) << address.status();
  EXPECT_EQ(address->host, "fe80::1");
  EXPECT_EQ(address->ToString(), "[fe80::1]:80");
}

TEST(AddressTest, KnowsWhatOnlyThisMachineReaches) {
  for (const char* text :
       {"127.0.0.1:1", "127.8.9.10:1", "localhost:1", "LocalHost:1", "[::1]:1"}) {
    EXPECT_TRUE(ParseAddress(text)->is_loopback()) << text;
  }
  for (const char* text : {"0.0.0.0:1", "10.0.0.1:1", "example.org:1", "[::]:1",
                           "127.0.0.1.example.org:1", "localhost.example.org:1"}) {
    EXPECT_FALSE(ParseAddress(text)->is_loopback()) << text;
  }
}

TEST(AddressTest, RefusesWhatIsNoAddress) {
  for (const char* text : {"", "host", ":1", "host:", "host:x", "host:65536", "host:-1", "host:+1",
                           "host:1:2", "::1:1", "[::1]", "[host]:1", "ho st:1", "unix:/tmp/x"}) {
    const absl::StatusOr<Address> address = ParseAddress(text);
    ASSERT_EQ(address.status().code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(Message(address.status()), HasSubstr(text));
  }
}

TEST(AddressTest, SaysThatAPortIsInUse) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  ASSERT_GE(fd, 0);
  sockaddr_in local{};
  local.sin_family = AF_INET;
  local.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  ASSERT_EQ(bind(fd, reinterpret_cast<sockaddr*>(&local), sizeof(local)), 0);
  ASSERT_EQ(listen(fd, 1), 0);
  socklen_t size = sizeof(local);
  ASSERT_EQ(getsockname(fd, reinterpret_cast<sockaddr*>(&local), &size), 0);

  Address address{"127.0.0.1", ntohs(local.sin_port)};
  const absl::Status used = CheckCanBind(address);
  EXPECT_EQ(used.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(used), HasSubstr(address.ToString()));
  EXPECT_THAT(Message(used), HasSubstr("in use"));

  close(fd);
  EXPECT_TRUE(CheckCanBind(address).ok());
}

TEST(AddressTest, SaysThatAnAddressIsNotOfThisMachine) {
  const absl::Status status = CheckCanBind({"192.0.2.1", 0});  // RFC 5737: nobody's
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(status), HasSubstr("192.0.2.1:0"));
}

}  // namespace
}  // namespace osdn
