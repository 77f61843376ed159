// The chat page: one file, embedded at build time.
#ifndef OSDN_SERVER_HTTP_CHAT_PAGE_H_
#define OSDN_SERVER_HTTP_CHAT_PAGE_H_

#include <string>

namespace osdn {

// page/index.html.
std::string ChatPage();
// Its Content-Security-Policy: its own script and style by their hashes, requests to this server
// only.
std::string ChatPagePolicy();

}  // namespace osdn

#endif  // OSDN_SERVER_HTTP_CHAT_PAGE_H_
