// Requests and responses as the handlers see them: no library's types.
#ifndef OSDN_SERVER_HTTP_HTTP_MESSAGE_H_
#define OSDN_SERVER_HTTP_HTTP_MESSAGE_H_

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"

namespace osdn {

struct CallEnvironment;

struct HttpRequest {
  std::string method;
  std::string path;                          // decoded, without the query; any bytes
  std::map<std::string, std::string> query;  // the first of each name
  // The header's value, or "". Names in any case.
  std::function<std::string(const char* name)> header;
  std::string peer;  // the other side's address, without port
  // What the call has; set by the gateway when the request is admitted.
  std::shared_ptr<const CallEnvironment> environment;
  std::string body;
  int socket = -1;  // to see whether the client is still there
};

// Writes a piece of the body; false: the client is gone or does not read.
using HttpWriter = std::function<bool(absl::string_view)>;

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::string body;
  std::vector<std::pair<std::string, std::string>> headers;
  // Where set, writes the body instead, after the head, on the connection's thread. False: what was
  // written is no whole answer, and the connection is closed.
  std::function<bool(const HttpWriter&)> stream;
};

}  // namespace osdn

#endif  // OSDN_SERVER_HTTP_HTTP_MESSAGE_H_
