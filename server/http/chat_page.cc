#include "server/http/chat_page.h"

#include <openssl/sha.h>

#include <array>
#include <cstddef>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace osdn {

// Made by page/embed.cmake.
extern const size_t kChatPageBytes;
extern const unsigned char kChatPageData[];

namespace {

// The hash of the text between `open` and `close`, as a policy's source.
std::string HashOf(absl::string_view page, absl::string_view open, absl::string_view close) {
  const size_t begin = page.find(open) + open.size();
  const absl::string_view text = page.substr(begin, page.find(close, begin) - begin);
  std::array<unsigned char, SHA256_DIGEST_LENGTH> digest{};
  SHA256(reinterpret_cast<const unsigned char*>(text.data()), text.size(), digest.data());
  return absl::StrCat("'sha256-",
                      absl::Base64Escape(absl::string_view(
                          reinterpret_cast<const char*>(digest.data()), digest.size())),
                      "'");
}

std::string MakePolicy() {
  const std::string page = ChatPage();
  return absl::StrCat("default-src 'none'; script-src ", HashOf(page, "<script>", "</script>"),
                      "; style-src ", HashOf(page, "<style>", "</style>"),
                      "; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
                      "frame-ancestors 'none'");
}

}  // namespace

std::string ChatPage() {
  return std::string(reinterpret_cast<const char*>(kChatPageData), kChatPageBytes);
}

std::string ChatPagePolicy() {
  static const std::string policy = MakePolicy();
  return policy;
}

}  // namespace osdn
