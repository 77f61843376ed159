// What answers each route. All run on a connection's thread, which may wait.
#ifndef OSDN_SERVER_HTTP_HANDLERS_H_
#define OSDN_SERVER_HTTP_HANDLERS_H_

#include "server/call_environment.h"
#include "server/http/connection_watch.h"
#include "server/http/http_message.h"

namespace osdn {

// Of one request.
struct HandlerContext {
  CallEnvironment environment;  // with whom its tokens count for
  ConnectionWatch* watch = nullptr;
};

HttpResponse ListModels(const HandlerContext& context, const HttpRequest& request);
// The model named by the path's rest.
HttpResponse GetModel(const HandlerContext& context, const HttpRequest& request);
HttpResponse CreateCompletion(const HandlerContext& context, const HttpRequest& request);
HttpResponse CreateChatCompletion(const HandlerContext& context, const HttpRequest& request);

}  // namespace osdn

#endif  // OSDN_SERVER_HTTP_HANDLERS_H_
